// PRM and LCT on the CPU, forward and backward, for float and double.
//
// Both blocks work on slabs. A slab is one group of one sample: k channels by N
// positions, contiguous. A slab of a ResNet is 0.1 to 1 MB. One thread takes a slab
// through all passes, so memory is read once and the later passes hit the cache.
//
// Sums over positions: blocks of BLOCK positions in the tensor's own type, the sums of
// blocks in double.

#include <algorithm>
#include <limits>
#include <utility>

#include "common.h"

namespace {

constexpr int64_t BLOCK = 512;  // positions; some arrays of this size fit in L1
// The values of ../common.py.
constexpr double MIN_SIGMA = 1e-5, EPS = 1e-5, MIN_DEVIATION = 1e-15, MIN_NORMS = 1e-8;
constexpr double SQRT_2_PI = 2.5066282746310002;

enum Similarity { DOT, L1, COSINE };

// What the similarity loops of PRM compare a position with, and what they sum.
template <class T>
struct Maps {
  T to_query[BLOCK], to_mean[BLOCK], square[BLOCK];
};

}  // namespace

// Arguments of one call. prm_cpp.py and lct_cpp.py declare the same structures.
struct PRM {
  int64_t slabs, groups, channels, height, width;  // channels of one slab
  int64_t similarity, normalized, threads;
  const void *x;            // (slabs, channels, height * width)
  const void *gradient;     // like x; backward only
  void *result;             // like x: y, or the gradient of x
  const void *parameters;   // (4, groups): alpha, beta, weight, bias
  const void *position;     // (3,): theta of rows, theta of columns, sigma; or null
  int64_t *index;           // (slabs,): position of the query
  void *mean;               // (slabs, channels)
  void *statistics;         // (slabs, 3): shift, offset, deviation
  double *g_parameters;     // (slabs, 7): alpha, beta, weight, bias, theta, sigma
  double *scratch;          // (threads, prm_scratch(...))
};

struct LCT {
  int64_t slabs, groups, channels, positions;  // channels of one slab
  int64_t normalized, threads;
  double eps;
  const void *x;         // (slabs, channels, positions)
  const void *gradient;  // like x; backward only
  void *result;          // like x: y, or the gradient of x
  const void *weight;    // (groups * channels,), or null
  const void *bias;      // like weight
  void *mean;            // (slabs, channels)
  double *g_weight;      // (slabs, channels)
  double *g_bias;        // (slabs, channels)
  double *scratch;       // (threads, 3 * channels)
};

namespace {

template <class T>
INLINE T sigmoid(T a) {
  const T gate = T(1) / (T(1) + exponential(-a));
  // `exponential` of a float ends at 88.3, which would leave a gate of 4e-39 instead of 0.
  return sizeof(T) == 4 && a < T(-88) ? T(0) : gate;
}

template <class T>
INLINE T sign(T a) {
  return a > 0 ? T(1) : a < 0 ? T(-1) : a * 0;  // NaN passes through
}

// -- PRM -------------------------------------------------------------------------------

// Views of one slab, and of the arrays of one thread.
template <class T>
struct Slab {
  int64_t k, n, height, width;
  const T *x, *gradient;
  T *result;
  T alpha, beta, weight, bias;
  const T *position;
  int64_t *index;
  T *mean, *statistics;
  double *g_parameters;
  double *g_query, *g_mean, *g_rows, *g_columns;  // (k,), (k,), (height,), (width,)
  T *query, *rows, *columns;                      // (k,), (height,), (width,)
  T *score, *gate, *g_logit, *to_query, *to_mean, *square;  // (n,)

  Slab(const PRM &p, int64_t slab, int64_t thread, int64_t size)
      : k(p.channels), n(p.height * p.width), height(p.height), width(p.width) {
    int64_t group = slab % p.groups, at = slab * k * n;
    x = static_cast<const T *>(p.x) + at;
    gradient = static_cast<const T *>(p.gradient) + (p.gradient ? at : 0);
    result = static_cast<T *>(p.result) + at;
    const T *values = static_cast<const T *>(p.parameters) + group;
    alpha = values[0];
    beta = values[p.groups];
    weight = values[2 * p.groups];
    bias = values[3 * p.groups];
    position = static_cast<const T *>(p.position);
    index = p.index + slab;
    mean = static_cast<T *>(p.mean) + slab * k;
    statistics = static_cast<T *>(p.statistics) + slab * 3;
    g_parameters = p.g_parameters + (p.g_parameters ? slab * 7 : 0);
    double *room = p.scratch + thread * size;
    for (auto [array, length] : {std::pair<double **, int64_t>(&g_query, k),
                                 {&g_mean, k},
                                 {&g_rows, height},
                                 {&g_columns, width}}) {
      *array = room;
      room += length;
    }
    T *rest = reinterpret_cast<T *>(room);
    for (auto [array, length] : {std::pair<T **, int64_t>(&query, k),
                                 {&rows, height},
                                 {&columns, width},
                                 {&score, n},
                                 {&gate, n},
                                 {&g_logit, n},
                                 {&to_query, n},
                                 {&to_mean, n},
                                 {&square, n}}) {
      *array = rest;
      rest += length;
    }
  }
};

// Channel means, and the first position with the largest sum over channels. The sum
// adds channel after channel, as reference.py does: equal positions have equal sums.
template <class T>
INLINE void find_query(const Slab<T> &s) {
  T total[BLOCK], best = -std::numeric_limits<T>::infinity();
  std::fill(s.g_query, s.g_query + s.k, 0.0);
  *s.index = 0;
  for (int64_t start = 0; start < s.n; start += BLOCK) {
    int64_t length = std::min(BLOCK, s.n - start);
    for (int64_t c = 0; c < s.k; ++c) {
      const T *x = s.x + c * s.n + start;
      T sum = 0;
      if (c == 0) {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < length; ++i) {
          total[i] = x[i];
          sum += x[i];
        }
      } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < length; ++i) {
          total[i] += x[i];
          sum += x[i];
        }
      }
      s.g_query[c] += sum;
    }
    T largest = total[0];
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < length; ++i) largest = total[i] > largest ? total[i] : largest;
    if (largest > best) {
      best = largest;
      *s.index = start + (std::find(total, total + length, largest) - total);
    }
  }
  for (int64_t c = 0; c < s.k; ++c) s.mean[c] = T(s.g_query[c] / s.n);
}

// Eq. 5 on both axes, halved, since D is the mean of the two.
template <class T>
INLINE void densities(const Slab<T> &s) {
  if (!s.position) return;
  T sigma = std::max(std::abs(s.position[2]), T(MIN_SIGMA));
  T factor = T(0.5) / (sigma * T(SQRT_2_PI));
  auto density = [&](T distance, T theta) {
    T ratio = theta * distance / sigma;
    return std::exp(T(-0.5) * ratio * ratio) * factor;
  };
  int64_t row = *s.index / s.width, column = *s.index % s.width;
  for (int64_t i = 0; i < s.height; ++i) s.rows[i] = density(T(i - row), s.position[0]);
  for (int64_t i = 0; i < s.width; ++i)
    s.columns[i] = density(T(i - column), s.position[1]);
}

// alpha * D at positions start to start + length.
template <class T>
INLINE void position_weights(const Slab<T> &s, int64_t start, int64_t length, T *out) {
  if (!s.position) {
    std::fill(out, out + length, s.alpha);
    return;
  }
  int64_t row = start / s.width, column = start % s.width;
  for (int64_t i = 0; i < length; ++row, column = 0) {
    int64_t end = std::min(length, i + s.width - column);
    const T *columns = s.columns + column - i;
    T along = s.rows[row], alpha = s.alpha;
#pragma omp simd
    for (int64_t j = i; j < end; ++j) out[j] = alpha * (along + columns[j]);
    i = end;
  }
}

// Eqs. 2-4 at positions start to start + length. g_gate, if not null, gets the sums of
// gradient * x over channels.
template <int SIMILARITY, class T>
INLINE void similarities(const Slab<T> &s, int64_t start, int64_t length, Maps<T> &maps,
                         T *g_gate) {
  std::fill(maps.to_query, maps.to_query + length, T(0));
  std::fill(maps.to_mean, maps.to_mean + length, T(0));
  if (SIMILARITY == COSINE) std::fill(maps.square, maps.square + length, T(0));
  if (g_gate) std::fill(g_gate, g_gate + length, T(0));
  double query_square = 0, mean_square = 0;
  for (int64_t c = 0; c < s.k; ++c) {
    const T *x = s.x + c * s.n + start;
    T q = s.query[c], z = s.mean[c];
    query_square += double(q) * q;
    mean_square += double(z) * z;
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) {
      if (SIMILARITY == L1) {
        maps.to_query[i] -= std::abs(x[i] - q);
        maps.to_mean[i] -= std::abs(x[i] - z);
      } else {
        maps.to_query[i] += x[i] * q;
        maps.to_mean[i] += x[i] * z;
      }
      if (SIMILARITY == COSINE) maps.square[i] += x[i] * x[i];
    }
    if (g_gate) {
      const T *g = s.gradient + c * s.n + start;
#pragma omp simd
      for (int64_t i = 0; i < length; ++i) g_gate[i] += g[i] * x[i];
    }
  }
  if (SIMILARITY == COSINE) {
    T query_norm = T(std::sqrt(query_square)), mean_norm = T(std::sqrt(mean_square));
    for (int64_t i = 0; i < length; ++i) {
      T norm = std::sqrt(maps.square[i]);
      maps.to_query[i] /= std::max(query_norm * norm, T(MIN_NORMS));
      maps.to_mean[i] /= std::max(mean_norm * norm, T(MIN_NORMS));
    }
  }
}

// Eq. 1.
template <class T>
INLINE void scores(const Slab<T> &s, const Maps<T> &maps, const T *position_weight,
                   int64_t length, T *out) {
  T beta = s.beta;
  // Two loops: in one, the compiler may round the first product in some positions and the
  // second in others (fused multiply-add). A constant score would no longer be constant.
#pragma omp simd
  for (int64_t i = 0; i < length; ++i) out[i] = beta * maps.to_mean[i];
#pragma omp simd
  for (int64_t i = 0; i < length; ++i) out[i] += position_weight[i] * maps.to_query[i];
}

template <class T>
INLINE void gather_query(const Slab<T> &s) {
  for (int64_t c = 0; c < s.k; ++c) s.query[c] = s.x[c * s.n + *s.index];
}

template <int SIMILARITY, class T>
INLINE void forward_slab(const Slab<T> &s, bool normalized) {
  find_query(s);
  gather_query(s);
  densities(s);
  Maps<T> maps;
  T buffer[BLOCK];
  double total = 0;
  T shift = 0;
  for (int64_t start = 0; start < s.n; start += BLOCK) {
    int64_t length = std::min(BLOCK, s.n - start);
    T *score = s.score + start;
    similarities<SIMILARITY>(s, start, length, maps, static_cast<T *>(nullptr));
    position_weights(s, start, length, buffer);
    scores(s, maps, buffer, length, score);
    if (!normalized) continue;
    // Shifting by one of its own values changes no normalised score. It makes a constant
    // score exactly zero: Eq. 7 would divide the rounding of a mean by 1e-5.
    if (start == 0) shift = score[0];
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < length; ++i) {
      score[i] -= shift;
      sum += score[i];
    }
    total += sum;
  }
  T scale = s.weight;
  if (normalized) {
    T offset = T(total / s.n);
    double squares = 0;  // squares of a float can overflow a float
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < s.n; ++i) {
      s.score[i] -= offset;
      squares += double(s.score[i]) * s.score[i];
    }
    T deviation = T(std::max(std::sqrt(squares / s.n), MIN_DEVIATION));
    s.statistics[0] = shift;
    s.statistics[1] = offset;
    s.statistics[2] = deviation;
    scale = s.weight / (deviation + T(EPS));
  }
  for (int64_t start = 0; start < s.n; start += BLOCK) {
    int64_t length = std::min(BLOCK, s.n - start);
    const T *score = s.score + start;
    T bias = s.bias;
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) buffer[i] = sigmoid(score[i] * scale + bias);
    for (int64_t c = 0; c < s.k; ++c) {
      const T *x = s.x + c * s.n + start;
      T *y = s.result + c * s.n + start;
#pragma omp simd
      for (int64_t i = 0; i < length; ++i) y[i] = x[i] * buffer[i];
    }
  }
}

// Gradients of alpha, theta and sigma, from those of alpha * D summed over rows and
// columns.
template <class T>
INLINE void position_gradients(const Slab<T> &s) {
  double sigma = std::max(std::abs(double(s.position[2])), MIN_SIGMA);
  double g_alpha = 0, g_theta[2], g_sigma = 0;
  int64_t row = *s.index / s.width, column = *s.index % s.width;
  auto axis = [&](int number, int64_t length, int64_t query, const double *gradient,
                  const T *density) {
    double theta = s.position[number];
    g_theta[number] = 0;
    for (int64_t i = 0; i < length; ++i) {
      double distance = double(i - query), ratio = theta * distance / sigma;
      double g = gradient[i] * density[i];
      g_alpha += g;
      g_theta[number] -= g * ratio * distance / sigma;
      g_sigma += g * (ratio * ratio - 1) / sigma;
    }
    g_theta[number] *= s.alpha;
  };
  axis(0, s.height, row, s.g_rows, s.rows);
  axis(1, s.width, column, s.g_columns, s.columns);
  s.g_parameters[0] = g_alpha;
  s.g_parameters[4] = g_theta[0];
  s.g_parameters[5] = g_theta[1];
  // Below its floor, sigma has no effect.
  bool acts = std::abs(double(s.position[2])) >= MIN_SIGMA;
  s.g_parameters[6] = acts ? g_sigma * s.alpha * sign(double(s.position[2])) : 0;
}

template <int SIMILARITY, class T>
INLINE void backward_slab(const Slab<T> &s, bool normalized) {
  gather_query(s);
  densities(s);
  Maps<T> maps;
  T weights[BLOCK], g_gate[BLOCK];
  T shift = 0, offset = 0, inverse = 1;
  double deviation = 1;
  if (normalized) {
    shift = s.statistics[0];
    offset = s.statistics[1];
    deviation = s.statistics[2];
    inverse = T(1 / (deviation + EPS));
  }

  // The forward's score again, and the gradient of the gate's argument (Eq. 8).
  double total = 0, product = 0;
  for (int64_t start = 0; start < s.n; start += BLOCK) {
    int64_t length = std::min(BLOCK, s.n - start);
    T *score = s.score + start, *gate = s.gate + start, *g_logit = s.g_logit + start;
    similarities<SIMILARITY>(s, start, length, maps, g_gate);
    position_weights(s, start, length, weights);
    scores(s, maps, weights, length, score);
    std::copy(maps.to_query, maps.to_query + length, s.to_query + start);
    std::copy(maps.to_mean, maps.to_mean + length, s.to_mean + start);
    if (SIMILARITY == COSINE)
      std::copy(maps.square, maps.square + length, s.square + start);
    T weight = s.weight, bias = s.bias;
    // In double: an error of these means would act at all positions alike, and sums over
    // positions would magnify it.
    double sum = 0, along = 0;
#pragma omp simd reduction(+ : sum, along)
    for (int64_t i = 0; i < length; ++i) {
      T u = ((score[i] - shift) - offset) * inverse;
      T a = sigmoid(weight * u + bias);
      T g = g_gate[i] * a * (1 - a);
      score[i] = u;
      gate[i] = a;
      g_logit[i] = g;
      sum += double(g);
      along += double(g) * u;
    }
    total += sum;
    product += along;
  }

  // Eqs. 7 and 6 together, then Eq. 1. The score is normalised here, and so the factors
  // neither overflow nor vanish for large features.
  T scale = s.weight * inverse;
  double mean_g = normalized ? total / s.n : 0;
  double slope = normalized ? product / s.n * (1 + EPS / deviation) : 0;
  double g_alpha = 0, g_beta = 0;
  std::fill(s.g_rows, s.g_rows + s.height, 0.0);
  std::fill(s.g_columns, s.g_columns + s.width, 0.0);
  std::fill(s.g_query, s.g_query + s.k, 0.0);
  std::fill(s.g_mean, s.g_mean + s.k, 0.0);
  double query_square = 0, mean_square = 0;
  for (int64_t c = 0; c < s.k; ++c) {
    query_square += double(s.query[c]) * s.query[c];
    mean_square += double(s.mean[c]) * s.mean[c];
  }
  T query_norm = T(std::sqrt(query_square)), mean_norm = T(std::sqrt(mean_square));
  double norms_of_query = 0, norms_of_mean = 0;
  for (int64_t start = 0; start < s.n; start += BLOCK) {
    int64_t length = std::min(BLOCK, s.n - start);
    T *to_query = s.to_query + start, *to_mean = s.to_mean + start;
    const T *u = s.score + start, *g_logit = s.g_logit + start;
    position_weights(s, start, length, weights);
    T *g_weights = g_gate;  // gradient of alpha * D
    T beta = s.beta;
    double along_query = 0, along_mean = 0;
#pragma omp simd reduction(+ : along_query, along_mean)
    for (int64_t i = 0; i < length; ++i) {
      T g = T(scale * ((g_logit[i] - mean_g) - u[i] * slope));
      g_weights[i] = g * to_query[i];
      along_query += double(g) * to_query[i];
      along_mean += double(g) * to_mean[i];
      maps.to_query[i] = g * weights[i];
      maps.to_mean[i] = g * beta;
    }
    g_alpha += along_query;
    g_beta += along_mean;
    if (s.position) {
      int64_t row = start / s.width, column = start % s.width;
      for (int64_t i = 0; i < length; ++row, column = 0) {
        int64_t end = std::min(length, i + s.width - column);
        double *columns = s.g_columns + column - i;
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = i; j < end; ++j) {
          columns[j] += g_weights[j];
          sum += g_weights[j];
        }
        s.g_rows[row] += sum;
        i = end;
      }
    }
    if (SIMILARITY == COSINE) {
      T *square = s.square + start, sum_query = 0, sum_mean = 0;
      for (int64_t i = 0; i < length; ++i) {
        T norm = std::sqrt(square[i]);
        T norms_query = query_norm * norm, norms_mean = mean_norm * norm;
        // Below the floor, the norms are constants.
        T of_query =
            norms_query < T(MIN_NORMS) ? T(0) : maps.to_query[i] * to_query[i];
        T of_mean = norms_mean < T(MIN_NORMS) ? T(0) : maps.to_mean[i] * to_mean[i];
        maps.to_query[i] /= std::max(norms_query, T(MIN_NORMS));
        maps.to_mean[i] /= std::max(norms_mean, T(MIN_NORMS));
        sum_query += of_query;
        sum_mean += of_mean;
        square[i] = (of_query + of_mean) / std::max(square[i], std::numeric_limits<T>::min());
      }
      norms_of_query += sum_query;
      norms_of_mean += sum_mean;
    }
    // Gradients of the similarities; kept where the similarities were.
    std::copy(maps.to_query, maps.to_query + length, to_query);
    std::copy(maps.to_mean, maps.to_mean + length, to_mean);
    for (int64_t c = 0; c < s.k; ++c) {
      const T *x = s.x + c * s.n + start;
      T q = s.query[c], z = s.mean[c], of_query = 0, of_mean = 0;
#pragma omp simd reduction(+ : of_query, of_mean)
      for (int64_t i = 0; i < length; ++i) {
        T by_query = SIMILARITY == L1 ? sign(x[i] - q) : x[i];
        T by_mean = SIMILARITY == L1 ? sign(x[i] - z) : x[i];
        of_query += to_query[i] * by_query;
        of_mean += to_mean[i] * by_mean;
      }
      s.g_query[c] += of_query;
      s.g_mean[c] += of_mean;
    }
  }
  if (SIMILARITY == COSINE) {
    double tiny = std::numeric_limits<T>::min();
    for (int64_t c = 0; c < s.k; ++c) {
      s.g_query[c] -= s.query[c] * norms_of_query / std::max(query_square, tiny);
      s.g_mean[c] -= s.mean[c] * norms_of_mean / std::max(mean_square, tiny);
    }
  }

  s.g_parameters[0] = g_alpha;
  s.g_parameters[1] = g_beta;
  s.g_parameters[2] = product;
  s.g_parameters[3] = total;
  if (s.position) position_gradients(s);

  // Gradient of x: through the product with the gate, through both similarities, and
  // through the mean vector. The query vector's share falls on the query alone.
  for (int64_t start = 0; start < s.n; start += BLOCK) {
    int64_t length = std::min(BLOCK, s.n - start);
    const T *gate = s.gate + start, *square = s.square + start;
    const T *g_query = s.to_query + start, *g_mean = s.to_mean + start;
    for (int64_t c = 0; c < s.k; ++c) {
      const T *x = s.x + c * s.n + start, *g = s.gradient + c * s.n + start;
      T *gx = s.result + c * s.n + start;
      T q = s.query[c], z = s.mean[c], spread = T(s.g_mean[c] / s.n);
#pragma omp simd
      for (int64_t i = 0; i < length; ++i) {
        T by_query = SIMILARITY == L1 ? -sign(x[i] - q) : q;
        T by_mean = SIMILARITY == L1 ? -sign(x[i] - z) : z;
        T sum = g[i] * gate[i] + spread + g_query[i] * by_query + g_mean[i] * by_mean;
        if (SIMILARITY == COSINE) sum -= x[i] * square[i];
        gx[i] = sum;
      }
    }
  }
  for (int64_t c = 0; c < s.k; ++c) s.result[c * s.n + *s.index] += T(s.g_query[c]);
}

// -- LCT -------------------------------------------------------------------------------

// Sums of x over the positions of each channel, or of x * factor.
template <class T>
INLINE void channel_sums(const T *x, const T *factor, int64_t k, int64_t n, double *out) {
  for (int64_t c = 0; c < k; ++c) {
    out[c] = 0;
    for (int64_t start = c * n; start < (c + 1) * n; start += BLOCK) {
      int64_t end = std::min(start + BLOCK, (c + 1) * n);
      T sum = 0;
      if (factor) {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = start; i < end; ++i) sum += x[i] * factor[i];
      } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t i = start; i < end; ++i) sum += x[i];
      }
      out[c] += sum;
    }
  }
}

// Eqs. 2 and 3 in place; returns one over the deviation.
INLINE double normalize(double *context, int64_t k, double eps) {
  double mean = 0, variance = 0;
  for (int64_t c = 0; c < k; ++c) mean += context[c] / k;
  for (int64_t c = 0; c < k; ++c) {
    context[c] -= mean;
    variance += context[c] * context[c] / k;
  }
  double inverse = 1 / std::sqrt(variance + eps);
  for (int64_t c = 0; c < k; ++c) context[c] *= inverse;
  return inverse;
}

template <class T>
INLINE void lct_slab(const LCT &p, int64_t slab, int64_t thread) {
  int64_t k = p.channels, n = p.positions, first = slab % p.groups * k;
  const T *x = static_cast<const T *>(p.x) + slab * k * n;
  const T *gradient = static_cast<const T *>(p.gradient);
  if (gradient) gradient += slab * k * n;
  T *result = static_cast<T *>(p.result) + slab * k * n;
  T *mean = static_cast<T *>(p.mean) + slab * k;
  const T *weight = static_cast<const T *>(p.weight), *bias = static_cast<const T *>(p.bias);
  double *context = p.scratch + thread * 3 * k, *gate = context + k, *g = gate + k;
  if (gradient) {
    channel_sums(gradient, x, k, n, g);
    for (int64_t c = 0; c < k; ++c) context[c] = mean[c];
  } else {
    channel_sums(x, static_cast<const T *>(nullptr), k, n, context);
    // Backward starts from the mean in T, and so does this pass: both see one gate.
    for (int64_t c = 0; c < k; ++c) context[c] = mean[c] = T(context[c] / n);
  }
  double inverse = p.normalized ? normalize(context, k, p.eps) : 1;
  for (int64_t c = 0; c < k; ++c) {
    double a = weight ? weight[first + c] * context[c] + bias[first + c] : context[c];
    gate[c] = 1 / (1 + std::exp(-a));
  }
  if (!gradient) {
    for (int64_t c = 0; c < k; ++c) {
      T factor = T(gate[c]);
#pragma omp simd
      for (int64_t i = c * n; i < (c + 1) * n; ++i) result[i] = x[i] * factor;
    }
    return;
  }

  // Eqs. 5 and 4, then 3 and 2.
  double along = 0, total = 0;
  for (int64_t c = 0; c < k; ++c) {
    double g_logit = g[c] * gate[c] * (1 - gate[c]);
    p.g_weight[slab * k + c] = g_logit * context[c];
    p.g_bias[slab * k + c] = g_logit;
    g[c] = weight ? g_logit * weight[first + c] : g_logit;
    total += g[c] / k;
    along += g[c] * context[c] / k;
  }
  for (int64_t c = 0; c < k; ++c) {
    if (p.normalized) g[c] = ((g[c] - total) - context[c] * along) * inverse;
    T factor = T(gate[c]), shift = T(g[c] / n);
#pragma omp simd
    for (int64_t i = c * n; i < (c + 1) * n; ++i)
      result[i] = gradient[i] * factor + shift;
  }
}

// -- one function a type, which the compiler copies for each processor ------------------

int64_t scratch(const PRM &p) {
  int64_t values = p.channels + p.height + p.width + 6 * p.height * p.width;
  return 2 * p.channels + p.height + p.width + values;
}

#define SLAB_FUNCTIONS(T)                                                           \
  EACH_PROCESSOR void prm_forward_##T(const PRM &p, int64_t slab, int64_t thread) { \
    Slab<T> s(p, slab, thread, scratch(p));                                         \
    if (p.similarity == DOT) forward_slab<DOT>(s, p.normalized);                    \
    if (p.similarity == L1) forward_slab<L1>(s, p.normalized);                      \
    if (p.similarity == COSINE) forward_slab<COSINE>(s, p.normalized);              \
  }                                                                                 \
  EACH_PROCESSOR void prm_backward_##T(const PRM &p, int64_t slab, int64_t thread) { \
    Slab<T> s(p, slab, thread, scratch(p));                                         \
    if (p.similarity == DOT) backward_slab<DOT>(s, p.normalized);                   \
    if (p.similarity == L1) backward_slab<L1>(s, p.normalized);                     \
    if (p.similarity == COSINE) backward_slab<COSINE>(s, p.normalized);             \
  }                                                                                 \
  EACH_PROCESSOR void lct_##T(const LCT &p, int64_t slab, int64_t thread) {         \
    lct_slab<T>(p, slab, thread);                                                   \
  }
SLAB_FUNCTIONS(float)
SLAB_FUNCTIONS(double)

}  // namespace

extern "C" {

// A hash of the sources. kernels.py compares it with the hash of the files it finds, so
// that Python never calls a library of other arguments.
const char *source() { return SOURCE; }

int64_t prm_scratch(const PRM *p) { return scratch(*p); }

#define ENTRY(NAME, STRUCT, FUNCTION)                                     \
  void NAME(const STRUCT *p) {                                            \
    for_each(p->slabs, p->threads, [=](int64_t slab, int64_t thread) { \
      FUNCTION(*p, slab, thread);                                         \
    });                                                                   \
  }
ENTRY(prm_forward_float32, PRM, prm_forward_float)
ENTRY(prm_forward_float64, PRM, prm_forward_double)
ENTRY(prm_backward_float32, PRM, prm_backward_float)
ENTRY(prm_backward_float64, PRM, prm_backward_double)
ENTRY(lct_float32, LCT, lct_float)
ENTRY(lct_float64, LCT, lct_double)

}  // extern "C"
