// What Python calls, through a plain C interface: see kernels/native.py.
#include "standard.h"

#include <exception>

constexpr int INTERFACE = 3;

using namespace tandem;

extern "C" {

// Changes with the structures that Python fills in.
int tandem_interface() { return INTERFACE; }

#if defined(__x86_64__) && defined(__linux__)

// The widest instruction set of this processor that is served: 512, 2 (AVX2), or 0 for none.
int tandem_instructions() {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("fma"))
        return 512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") ? 2 : 0;
}

static const Kernels& chosen() {
    static const Kernels& kernels = tandem_instructions() == 512 ? avx512_kernels : avx2_kernels;
    return kernels;
}

// A decoder of a model whose tensors stay where they are; null if memory or threads do not suffice.
void* tandem_open(const Model* model, int bfloat16, int threads) {
    try {
        return chosen().open(*model, bfloat16, threads);
    } catch (const std::exception&) {
        return nullptr;
    }
}

void tandem_close(void* decoder) { chosen().close(decoder); }

// The others return 0, or 1 if memory does not suffice.
int tandem_forward(void* decoder, const Step* step) {
    try {
        chosen().forward(decoder, *step);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// One product: x [rows, inputs] of the element type, out [rows, outputs] float32.
int tandem_multiply(const Matrix* w, int bfloat16, const void* x, int64_t rows, float* out) {
    try {
        chosen().multiply(*w, bfloat16, x, rows, out);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// tokens[row]: one of logits [rows, size] for each draw.
int tandem_sample(const float* logits, int64_t rows, int64_t size, const Draw* draws, int64_t* tokens) {
    try {
        chosen().sample(logits, rows, size, draws, tokens);
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

#else

int tandem_instructions() { return 0; }

#endif

// The library is found through Python's import system, which never runs this.
void* PyInit__native() { return nullptr; }

}  // extern "C"
