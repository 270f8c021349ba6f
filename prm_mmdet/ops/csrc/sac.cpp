// SAC on the CPU, forward and backward, for float and double.
//
// All products with a map have a small side: K contexts, at most C / l. They are bound
// by memory. A task is one block of positions of one sample. Its features fit in the
// cache of a core, and all products of a phase read them from there. sac_cpp.py
// multiplies matrices without positions between the phases.
//
// In the comments: B samples, C channels of x, D channels of y, K contexts, N positions,
// P positions of a block. Block arrays have rows of P values; beyond the map's end, the
// last block holds zeros.

#include <algorithm>
#include <limits>

#include "common.h"

// Arguments of one call. sac_cpp.py declares the same structure.
struct SAC {
  int64_t batch, channels, results, contexts, positions;  // B, C, D, K, N
  int64_t block;                                          // P, a multiple of 16
  int64_t softmax, residual, threads;
  const void *x;            // (B, C, N)
  const void *gradient;     // (B, D, N); backward only
  void *result;             // (B, D, N): y, or (B, C, N): the gradient of x
  const void *w_maps;       // (2K, C): of attention, then of the weights
  const void *b_maps;       // (2K,)
  const void *b_transform;  // (D,)
  void *log_sums;           // (B, K): logarithm of the attention's denominator
  void *gathered;           // (B, K, C): contexts
  const void *mixing;       // (B, D, K): W contexts^T
  void *g_mixing;           // (B, D * K + D): gradients of mixing, then sums of gradient
  const void *g_contexts;   // (B, K, C)
  const void *centre;       // (B, K): products of contexts and their gradients
  double *g_w_maps;         // (2K, C)
  double *g_b_maps;         // (2K,)
  void *thread_scratch;     // (threads, sac_thread_scratch(...)) values
  void *scratch;            // (sac_scratch(...),) values
};

namespace {

// Values of one 32-byte register. GCC and Clang lower it where registers are smaller.
template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(32)));
  static constexpr int64_t SIZE = 32 / sizeof(T);
};

template <class T>
INLINE typename Vector<T>::type load(const T *at) {
  typename Vector<T>::type v;
  std::memcpy(&v, at, sizeof v);
  return v;
}

// ROWS rows of out += a * b; a is read with any strides, b and out have rows of p values.
template <int ROWS, class T>
INLINE void multiply_rows(int64_t inner, int64_t p, const T *a, int64_t row, int64_t column,
                          const T *b, T *out) {
  typedef typename Vector<T>::type V;
  constexpr int64_t SIZE = Vector<T>::SIZE;
  for (int64_t i = 0; i < p; i += 2 * SIZE) {
    V sum[ROWS][2];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      sum[r][0] = load(out + r * p + i);
      sum[r][1] = load(out + r * p + i + SIZE);
    }
    for (int64_t c = 0; c < inner; ++c) {
      V b0 = load(b + c * p + i), b1 = load(b + c * p + i + SIZE);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        T factor = a[r * row + c * column];
        sum[r][0] += factor * b0;
        sum[r][1] += factor * b1;
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      std::memcpy(out + r * p + i, &sum[r][0], sizeof(V));
      std::memcpy(out + r * p + i + SIZE, &sum[r][1], sizeof(V));
    }
  }
}

// out (rows, p) += a (rows, inner) * b (inner, p).
template <class T>
INLINE void multiply(int64_t rows, int64_t inner, int64_t p, const T *a, int64_t row,
                     int64_t column, const T *b, T *out) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    multiply_rows<4>(inner, p, a + r * row, row, column, b, out + r * p);
  for (; r < rows; ++r)
    multiply_rows<1>(inner, p, a + r * row, row, column, b, out + r * p);
}

template <int ROWS, int COLUMNS, class T>
INLINE void dot_tile(int64_t p, const T *a, const T *b, T *out, int64_t stride) {
  typedef typename Vector<T>::type V;
  constexpr int64_t SIZE = Vector<T>::SIZE;
  V sum[ROWS][COLUMNS] = {};
  for (int64_t i = 0; i < p; i += SIZE) {
    V left[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) left[r] = load(a + r * p + i);
#pragma GCC unroll 2
    for (int c = 0; c < COLUMNS; ++c) {
      V right = load(b + c * p + i);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) sum[r][c] += left[r] * right;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
    for (int c = 0; c < COLUMNS; ++c) {
      V lanes = sum[r][c];
      for (int64_t half = SIZE / 2; half; half /= 2)
        for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
      out[r * stride + c] = lanes[0];
    }
}

// out (rows, columns) = a (rows, p) * b (columns, p)^T.
template <class T>
INLINE void dots(int64_t rows, int64_t columns, int64_t p, const T *a, const T *b, T *out) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    int64_t c = 0;
    for (; c + 2 <= columns; c += 2)
      dot_tile<4, 2>(p, a + r * p, b + c * p, out + r * columns + c, columns);
    for (; c < columns; ++c)
      dot_tile<4, 1>(p, a + r * p, b + c * p, out + r * columns + c, columns);
  }
  for (; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      dot_tile<1, 1>(p, a + r * p, b + c * p, out + r * columns + c, columns);
}

template <class T>
INLINE void row_sums(int64_t rows, int64_t p, const T *a, T *out) {
  for (int64_t r = 0; r < rows; ++r) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < p; ++i) sum += a[r * p + i];
    out[r] = sum;
  }
}

int64_t blocks(const SAC &s) { return (s.positions + s.block - 1) / s.block; }

int64_t thread_values(const SAC &s) {
  return (s.channels + s.results + 4 * s.contexts) * s.block;
}

int64_t task_values(const SAC &s) {
  int64_t k = s.contexts;
  return 2 * k * s.block + 2 * k * (s.channels + 1) + s.results * (k + 1);
}

// One block of positions: its arrays that the phases hand on, and those of its thread.
template <class T>
struct Task {
  int64_t sample, start, length;
  T *maps;                       // (2K, P): attention, weights
  T *peaks, *sums, *partial;     // (K,), (K,), (K, C): forward's shares of the softmax
  T *g_mixing, *g_sums;          // (D, K), (D,): backward's first shares
  T *g_w_maps, *g_b_maps;        // (2K, C), (2K,): backward's second shares
  T *features, *results, *g_maps;  // (C, P), (D, P), (2K, P): of the thread

  Task(const SAC &s, int64_t task, int64_t thread = 0) {
    int64_t k = s.contexts, c = s.channels, d = s.results;
    sample = task / blocks(s);
    start = task % blocks(s) * s.block;
    length = std::min(s.block, s.positions - start);
    maps = static_cast<T *>(s.scratch) + task * task_values(s);
    peaks = maps + 2 * k * s.block;
    sums = peaks + k;
    partial = sums + k;
    g_b_maps = peaks;
    g_w_maps = g_b_maps + 2 * k;
    g_mixing = g_w_maps + 2 * k * c;
    g_sums = g_mixing + d * k;
    features = static_cast<T *>(s.thread_scratch) + thread * thread_values(s);
    results = features + c * s.block;
    g_maps = results + d * s.block;
  }

  void read(const SAC &s, const void *from, int64_t rows, T *to) const {
    const T *source = static_cast<const T *>(from) + sample * rows * s.positions + start;
    for (int64_t r = 0; r < rows; ++r, to += s.block, source += s.positions) {
      std::memcpy(to, source, length * sizeof(T));
      std::fill(to + length, to + s.block, T(0));
    }
  }

  void write(const SAC &s, const T *from, int64_t rows, void *to) const {
    T *target = static_cast<T *>(to) + sample * rows * s.positions + start;
    for (int64_t r = 0; r < rows; ++r, from += s.block, target += s.positions)
      std::memcpy(target, from, length * sizeof(T));
  }
};

template <class T>
INLINE void softmax_of_weights(const SAC &s, T *weights) {
  for (int64_t i = 0; i < s.block; ++i) {
    T peak = weights[i], sum = 0;
    for (int64_t k = 1; k < s.contexts; ++k)
      peak = std::max(peak, weights[k * s.block + i]);
    for (int64_t k = 0; k < s.contexts; ++k) {
      T &weight = weights[k * s.block + i];
      weight = exponential(weight - peak);
      sum += weight;
    }
    for (int64_t k = 0; k < s.contexts; ++k) weights[k * s.block + i] /= sum;
  }
}

// Logits of the attention (Eq. 2) and the weights (Eq. 4), from the features.
template <class T>
INLINE void compute_maps(const SAC &s, const Task<T> &t) {
  t.read(s, s.x, s.channels, t.features);
  const T *bias = static_cast<const T *>(s.b_maps);
  for (int64_t m = 0; m < 2 * s.contexts; ++m)
    std::fill(t.maps + m * s.block, t.maps + (m + 1) * s.block, bias[m]);
  multiply(2 * s.contexts, s.channels, s.block, static_cast<const T *>(s.w_maps),
           s.channels, 1, t.features, t.maps);
  if (s.softmax) softmax_of_weights(s, t.maps + s.contexts * s.block);
}

// The block's share of the contexts (Eq. 3). The softmax over positions is taken within
// the block. gather_contexts puts blocks in relation.
template <class T>
INLINE void forward_block(const SAC &s, const Task<T> &t) {
  compute_maps(s, t);
  for (int64_t k = 0; k < s.contexts; ++k) {
    T *map = t.maps + k * s.block, peak = map[0], sum = 0;
#pragma omp simd reduction(max : peak)
    for (int64_t i = 0; i < t.length; ++i) peak = map[i] > peak ? map[i] : peak;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < t.length; ++i) {
      map[i] = exponential(map[i] - peak);
      sum += map[i];
    }
    std::fill(map + t.length, map + s.block, T(0));
    t.peaks[k] = peak;
    t.sums[k] = sum;
  }
  dots(s.contexts, s.channels, s.block, t.maps, t.features, t.partial);
}

// Contexts of one sample, from the shares of its blocks.
template <class T>
void gather_contexts(const SAC &s, int64_t sample) {
  int64_t first = sample * blocks(s), last = first + blocks(s);
  T *contexts = static_cast<T *>(s.gathered) + sample * s.contexts * s.channels;
  T *log_sums = static_cast<T *>(s.log_sums) + sample * s.contexts;
  for (int64_t k = 0; k < s.contexts; ++k) {
    T peak = Task<T>(s, first).peaks[k];
    for (int64_t task = first; task < last; ++task)
      peak = std::max(peak, Task<T>(s, task).peaks[k]);
    double sum = 0;
    for (int64_t task = first; task < last; ++task) {
      Task<T> t(s, task);
      sum += t.sums[k] * std::exp(double(t.peaks[k] - peak));
    }
    log_sums[k] = T(peak + std::log(sum));
    T *context = contexts + k * s.channels;
    std::fill(context, context + s.channels, T(0));
    for (int64_t task = first; task < last; ++task) {
      Task<T> t(s, task);
      T factor = T(std::exp(double(t.peaks[k] - peak)) / sum);
      const T *partial = t.partial + k * s.channels;
      for (int64_t c = 0; c < s.channels; ++c) context[c] += factor * partial[c];
    }
  }
}

// y of the block (Eq. 5).
template <class T>
INLINE void result_block(const SAC &s, const Task<T> &t) {
  const T *bias = static_cast<const T *>(s.b_transform);
  if (s.residual) t.read(s, s.x, s.channels, t.results);
  for (int64_t d = 0; d < s.results; ++d) {
    T *y = t.results + d * s.block;
    if (!s.residual) std::fill(y, y + s.block, T(0));
#pragma omp simd
    for (int64_t i = 0; i < s.block; ++i) y[i] += bias[d];
  }
  multiply(s.results, s.contexts, s.block,
           static_cast<const T *>(s.mixing) + t.sample * s.results * s.contexts, s.contexts,
           1, t.maps + s.contexts * s.block, t.results);
  t.write(s, t.results, s.results, s.result);
}

// Attention and weights again, and the block's share of the gradient of W contexts^T.
template <class T>
INLINE void backward_block(const SAC &s, const Task<T> &t) {
  compute_maps(s, t);
  const T *log_sums = static_cast<const T *>(s.log_sums) + t.sample * s.contexts;
  for (int64_t k = 0; k < s.contexts; ++k) {
    T *map = t.maps + k * s.block, log_sum = log_sums[k];
#pragma omp simd
    for (int64_t i = 0; i < t.length; ++i) map[i] = exponential(map[i] - log_sum);
    std::fill(map + t.length, map + s.block, T(0));
  }
  t.read(s, s.gradient, s.results, t.results);
  dots(s.results, s.contexts, s.block, t.results, t.maps + s.contexts * s.block, t.g_mixing);
  row_sums(s.results, s.block, t.results, t.g_sums);
}

// Sums the shares of a sample's blocks.
template <class T>
void sum_mixing(const SAC &s, int64_t sample) {
  int64_t first = sample * blocks(s), count = s.results * (s.contexts + 1);
  T *total = static_cast<T *>(s.g_mixing) + sample * count;
  for (int64_t task = first; task < first + blocks(s); ++task) {
    const T *share = Task<T>(s, task).g_mixing;
    for (int64_t i = 0; i < count; ++i) total[i] += share[i];
  }
}

// Gradient of x in the block, and the block's share of the gradients of both maps'
// convolutions.
template <class T>
INLINE void gradient_block(const SAC &s, const Task<T> &t) {
  int64_t k = s.contexts, p = s.block;
  const T *mixing = static_cast<const T *>(s.mixing) + t.sample * s.results * k;
  const T *g_contexts = static_cast<const T *>(s.g_contexts) + t.sample * k * s.channels;
  const T *centres = static_cast<const T *>(s.centre) + t.sample * k;
  t.read(s, s.x, s.channels, t.features);
  t.read(s, s.gradient, s.results, t.results);
  std::fill(t.g_maps, t.g_maps + 2 * k * p, T(0));
  multiply(k, s.channels, p, g_contexts, s.channels, 1, t.features, t.g_maps);
  multiply(k, s.results, p, mixing, 1, k, t.results, t.g_maps + k * p);
  for (int64_t m = 0; m < k; ++m) {
    T *g = t.g_maps + m * p, centre = centres[m];
    const T *attention = t.maps + m * p;
#pragma omp simd
    for (int64_t i = 0; i < p; ++i) g[i] = attention[i] * (g[i] - centre);
  }
  if (s.softmax) {
    T *g = t.g_maps + k * p;
    const T *weights = t.maps + k * p;
    for (int64_t i = 0; i < p; ++i) {
      T along = 0;
      for (int64_t m = 0; m < k; ++m) along += g[m * p + i] * weights[m * p + i];
      for (int64_t m = 0; m < k; ++m)
        g[m * p + i] = weights[m * p + i] * (g[m * p + i] - along);
    }
  }
  dots(2 * k, s.channels, p, t.g_maps, t.features, t.g_w_maps);
  row_sums(2 * k, p, t.g_maps, t.g_b_maps);

  // x acts through both maps, as what is gathered, and as the residual.
  T *gx = t.features;
  if (s.residual)
    std::memcpy(gx, t.results, s.channels * p * sizeof(T));
  else
    std::fill(gx, gx + s.channels * p, T(0));
  multiply(s.channels, 2 * k, p, static_cast<const T *>(s.w_maps), 1, s.channels, t.g_maps,
           gx);
  multiply(s.channels, k, p, g_contexts, 1, s.channels, t.maps, gx);
  t.write(s, gx, s.channels, s.result);
}

// Gradients of one row of both maps' convolutions, and of its bias.
template <class T>
INLINE void map_gradients(const SAC &s, int64_t row) {
  double *g_w = s.g_w_maps + row * s.channels;
  for (int64_t sample = 0; sample < s.batch; ++sample) {
    double total = 0;
    for (int64_t b = 0; b < blocks(s); ++b) {
      Task<T> t(s, sample * blocks(s) + b);
      const T *share = t.g_w_maps + row * s.channels;
      for (int64_t c = 0; c < s.channels; ++c) g_w[c] += share[c];
      total += t.g_b_maps[row];
    }
    s.g_b_maps[row] += total;
    if (row >= s.contexts) continue;
    // The gradient of a softmax sums to zero, so that the features can be centred at the
    // context. Without it, the rounding of that sum times a large mean would remain.
    const T *context =
        static_cast<const T *>(s.gathered) + (sample * s.contexts + row) * s.channels;
    for (int64_t c = 0; c < s.channels; ++c) g_w[c] -= total * context[c];
  }
}

#define PHASES(T)                                                                      \
  EACH_PROCESSOR void forward_block_##T(const SAC &s, int64_t task, int64_t thread) {  \
    forward_block(s, Task<T>(s, task, thread));                                        \
  }                                                                                    \
  EACH_PROCESSOR void result_block_##T(const SAC &s, int64_t task, int64_t thread) {   \
    result_block(s, Task<T>(s, task, thread));                                         \
  }                                                                                    \
  EACH_PROCESSOR void backward_block_##T(const SAC &s, int64_t task, int64_t thread) { \
    backward_block(s, Task<T>(s, task, thread));                                       \
  }                                                                                    \
  EACH_PROCESSOR void gradient_block_##T(const SAC &s, int64_t task, int64_t thread) { \
    gradient_block(s, Task<T>(s, task, thread));                                       \
  }                                                                                    \
  EACH_PROCESSOR void map_gradients_##T(const SAC &s, int64_t row) {                   \
    map_gradients<T>(s, row);                                                          \
  }
PHASES(float)
PHASES(double)

}  // namespace

extern "C" {

int64_t sac_thread_scratch(const SAC *s) { return thread_values(*s); }

int64_t sac_scratch(const SAC *s) { return s->batch * blocks(*s) * task_values(*s); }

#define EACH(TASKS, CALL)                                                 \
  for_each(TASKS, s->threads, [&](int64_t task, int64_t thread) {         \
    (void)thread;                                                         \
    CALL;                                                                 \
  })

#define ENTRIES(NAME, T)                                                  \
  void sac_contexts_##NAME(const SAC *s) {                                \
    EACH(s->batch * blocks(*s), forward_block_##T(*s, task, thread));     \
    EACH(s->batch, gather_contexts<T>(*s, task));                         \
  }                                                                       \
  void sac_result_##NAME(const SAC *s) {                                  \
    EACH(s->batch * blocks(*s), result_block_##T(*s, task, thread));      \
  }                                                                       \
  void sac_g_mixing_##NAME(const SAC *s) {                                \
    EACH(s->batch * blocks(*s), backward_block_##T(*s, task, thread));    \
    EACH(s->batch, sum_mixing<T>(*s, task));                              \
  }                                                                       \
  void sac_gradients_##NAME(const SAC *s) {                               \
    EACH(s->batch * blocks(*s), gradient_block_##T(*s, task, thread));    \
    EACH(2 * s->contexts, map_gradients_##T(*s, task));                   \
  }
ENTRIES(float32, float)
ENTRIES(float64, double)

}  // extern "C"
