// The kernels for processors with AVX2.
#include "standard.h"

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>

#include "team.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define LANES avx2
#define LANES_HEADER "lanes_avx2.h"
#define PRODUCT_HEADER "product_chunks.h"
#include "kernels.h"
#pragma GCC pop_options

const tandem::Kernels tandem::avx2_kernels = tandem::avx2::kernels;
#endif
