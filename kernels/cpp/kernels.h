// The table of one instruction set's kernels. avx512.cpp and avx2.cpp include it with their own lanes.
#pragma once

#include "decoder.h"
#include "sampling.h"

namespace tandem::LANES {

struct AnyDecoder {
    std::unique_ptr<Decoder<Float32>> float32;
    std::unique_ptr<Decoder<BFloat16>> bfloat16;
};

static void* open(const Model& model, bool bfloat16, int threads) {
    auto decoder = std::make_unique<AnyDecoder>();
    if (bfloat16)
        decoder->bfloat16 = std::make_unique<Decoder<BFloat16>>(model, threads);
    else
        decoder->float32 = std::make_unique<Decoder<Float32>>(model, threads);
    return decoder.release();
}

static void close(void* decoder) { delete (AnyDecoder*)decoder; }

static void forward(void* opened, const Step& step) {
    auto* decoder = (AnyDecoder*)opened;
    if (decoder->bfloat16)
        decoder->bfloat16->forward(step);
    else
        decoder->float32->forward(step);
}

template <class T>
static void multiply_by(const Matrix& w, const void* x, int64_t rows, float* out) {
    Buffer scratch;
    const Store sink{out, w.outputs, w};
    product<T>(w, (const typename T::Element*)x, rows, 0, rounded_up(w.outputs, PANEL) / PANEL,
               scratch.take<uint8_t>(scratch_bytes<T>(w.inputs)), sink);
}

static void multiply_rounded(const Matrix& w, const float* x, int64_t rows, float* out) {
    Buffer memory;
    const int64_t stride = rounded_bytes(w.inputs);
    uint8_t* numbers = memory.take<uint8_t>(rows * stride);
    for (int64_t row = 0; row < rows; ++row) round_row(x + row * w.inputs, w.inputs, numbers + row * stride);
    integer_product(w, numbers, rows, 0, rounded_up(w.outputs, PANEL) / PANEL, Store{out, w.outputs, w});
}

static void multiply(const Matrix& w, bool bfloat16, const void* x, int64_t rows, float* out) {
    if (w.rounded)
        multiply_rounded(w, (const float*)x, rows, out);
    else if (bfloat16)
        multiply_by<BFloat16>(w, x, rows, out);
    else
        multiply_by<Float32>(w, x, rows, out);
}

static void sample(const float* logits, int64_t rows, int64_t size, const Draw* draws, int64_t* tokens) {
    Sampler sampler;
    for (int64_t row = 0; row < rows; ++row) tokens[row] = sampler.draw(logits + row * size, size, draws[row]);
}

static constexpr Kernels kernels{open, close, forward, multiply, sample};

}  // namespace tandem::LANES
