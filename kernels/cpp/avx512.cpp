// The kernels for processors with AVX-512 and its products of bfloat16.
#include "standard.h"

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>

#include "team.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c")
#define LANES avx512
#define LANES_HEADER "lanes_avx512.h"
#define PRODUCT_HEADER "product_tiles.h"
#include "kernels.h"
#pragma GCC pop_options

const tandem::Kernels tandem::avx512_kernels = tandem::avx512::kernels;
#endif
