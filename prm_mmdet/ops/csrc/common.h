// What the CPU kernels share.
//
// The functions are plain C with plain pointers, loaded through ctypes by kernels.py:
// the library fits every version of torch.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

// The compiler makes a copy of the marked function for processors with AVX2, and the
// loader of the library picks it by the processor's features. A build for the builder's
// own processor would stop with an illegal instruction on an older one.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v3", "default")))
#else  // with AVX2, but without fused multiply-add
#define EACH_PROCESSOR __attribute__((target_clones("avx2", "default")))
#endif
#else
#define EACH_PROCESSOR
#endif
// Inlined, so that each of those copies has its own copy of the helper, too.
#define INLINE static inline __attribute__((always_inline))

// Calls work(task, thread) for every task. Tasks must not depend on each other.
template <class Work>
void for_each(int64_t tasks, int64_t threads, Work work) {
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (int64_t task = 0; task < tasks; ++task) work(task, int64_t(omp_get_thread_num()));
#else
  for (int64_t task = 0; task < tasks; ++task) work(task, int64_t(0));
#endif
}

// exp for a <= 88 within two units in the last place, of operations that vectorise.
// NaN passes through.
INLINE float exponential(float a) {
  a = a < -87.3f ? -87.3f : a;
  a = a > 88.3f ? 88.3f : a;
  // Adding and subtracting 1.5 * 2^23 rounds to an integer.
  float shifted = a * 1.44269504f + 12582912.0f;
  float n = shifted - 12582912.0f;
  float r = (a - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = int32_t(uint32_t(bits + 127) << 23);  // 2^n
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

INLINE double exponential(double a) { return std::exp(a); }
