// What Python fills in and every instruction set reads: weights, a model, a step. See kernels/native.py.
#pragma once

#include <cstdint>

namespace tandem {

enum Format : int32_t { PLAIN = 0, FOUR_BIT = 1, EIGHT_BIT = 2 };

struct Matrix {
    int64_t outputs;
    int64_t inputs;
    int32_t format;
    int32_t rounded;  // activations to 8 bits; with 4-bit weights and float32 alone
    const uint8_t* data;
    const float* bias;
};

struct Layer {
    Matrix qkv;
    Matrix output;
    Matrix gate_up;
    Matrix down;
    const float* input_norm;
    const float* mlp_norm;
    const float* q_norm;
    const float* k_norm;
};

struct Heads {
    int64_t heads;
    int64_t kv_heads;
    int64_t dim;
    int64_t block_size;
    float scale;
};

struct Model {
    int64_t layers;
    int64_t hidden;
    int64_t width;
    int64_t vocabulary;
    Heads heads;
    float eps;
    float magnitude;
    const float* frequencies;
    const float* norm;
    Matrix embedding;
    Matrix head;
    const Layer* layer;
};

// One sequence of a step: its rows are `count` positions that end at `length`.
struct Span {
    int64_t first;
    int64_t count;
    int64_t length;
    const int32_t* blocks;
};

struct Step {
    int64_t rows;
    const int32_t* tokens;
    int64_t spans;
    const Span* span;
    void* pool;
    int64_t blocks;
    int64_t drawn;
    const int32_t* drawn_rows;
    float* logits;
};

struct Draw {
    float temperature;
    float top_p;
    float min_p;
    uint32_t first_key;
    uint32_t second_key;
    int32_t unused;
    int64_t top_k;
};

// The kernels of one instruction set. They throw std::bad_alloc; `open` whatever a thread may throw.
struct Kernels {
    void* (*open)(const Model& model, bool bfloat16, int threads);
    void (*close)(void* decoder);
    void (*forward)(void* decoder, const Step& step);
    void (*multiply)(const Matrix& w, bool bfloat16, const void* x, int64_t rows, float* out);
    void (*sample)(const float* logits, int64_t rows, int64_t size, const Draw* draws, int64_t* tokens);
};

extern const Kernels avx512_kernels, avx2_kernels;

}  // namespace tandem
