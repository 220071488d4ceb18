// What Python calls, through a plain C interface: see kernels/native.py.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <thread>
#include <vector>

constexpr int INTERFACE = 1;

#if defined(__x86_64__) && defined(__linux__)
#include "decoder.h"
#include "sampling.h"

using namespace tandem;

namespace {

struct Handle {
    std::unique_ptr<Decoder<Float32>> float32;
    std::unique_ptr<Decoder<BFloat16>> bfloat16;
};

template <class T>
void multiply_all(const Matrix& w, const void* x, int64_t rows, float* out) {
    Buffer scratch;
    uint8_t* panel = scratch.take<uint8_t>(w.inputs * PANEL * int64_t(sizeof(typename T::Element)));
    const Store sink{out, w.outputs, w};
    product<T>(w, (const typename T::Element*)x, rows, 0, rounded_up(w.outputs, PANEL) / PANEL, panel, sink);
}

}  // namespace

extern "C" {

// Changes with the structures that Python fills in.
int tandem_interface() { return INTERFACE; }

// Whether this processor has every instruction that is used here. The only function that is safe without.
int tandem_supported() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("fma");
}

// A decoder of a model whose tensors stay where they are; null if memory or threads do not suffice.
void* tandem_open(const Model* model, int bfloat16, int threads) {
    try {
        auto handle = std::make_unique<Handle>();
        if (bfloat16)
            handle->bfloat16 = std::make_unique<Decoder<BFloat16>>(*model, threads);
        else
            handle->float32 = std::make_unique<Decoder<Float32>>(*model, threads);
        return handle.release();
    } catch (const std::exception&) {
        return nullptr;
    }
}

void tandem_close(void* handle) { delete (Handle*)handle; }

// 0, or 1 if memory does not suffice.
int tandem_forward(void* handle, const Step* step) {
    auto* decoder = (Handle*)handle;
    try {
        if (decoder->bfloat16)
            decoder->bfloat16->forward(*step);
        else
            decoder->float32->forward(*step);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// One product: x [rows, inputs] of the element type, out [rows, outputs] float32.
int tandem_multiply(const Matrix* w, int bfloat16, const void* x, int64_t rows, float* out) {
    try {
        if (bfloat16)
            multiply_all<BFloat16>(*w, x, rows, out);
        else
            multiply_all<Float32>(*w, x, rows, out);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// tokens[row]: one of logits [rows, size] for each draw. 0, or 1 if memory does not suffice.
int tandem_sample(const float* logits, int64_t rows, int64_t size, const Draw* draws, int64_t* tokens) {
    try {
        Sampler sampler;
        for (int64_t row = 0; row < rows; ++row)
            tokens[row] = sampler.draw(logits + row * size, size, draws[row]);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // extern "C"

#else

extern "C" int tandem_interface() { return INTERFACE; }

extern "C" int tandem_supported() { return 0; }

#endif

// The library is found through Python's import system, which never runs this.
extern "C" void* PyInit__native() { return nullptr; }
