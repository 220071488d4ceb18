// The forward pass of a decoder of the Llama family over the rows of one step.
//
//   embedding ─▶ [ norm ─▶ qkv ─▶ turn, write KV ─▶ attention ─▶ output ─▶ + ─▶ norm ─▶ gate·up ─▶ down ─▶ + ]
//             ─▶ norm ─▶ head ─▶ logits of the rows that are drawn from
//
// The residual stream, norms, angles, sums and softmax are float32; what enters a product is rounded once to
// the element type.
#pragma once

#include <algorithm>
#include <memory>
#include <type_traits>
#include <vector>

#include "attention.h"
#include PRODUCT_HEADER
#include "product_integers.h"
#include "team.h"

namespace tandem::LANES {

static inline Vector biased(Vector x, const Matrix& w, int64_t column) {
    return w.bias ? add(x, load(w.bias + column)) : x;
}

// Sinks of products. Store: float32 results as they are.
struct Store {
    float* out;
    int64_t stride;
    const Matrix& w;
    void operator()(int64_t row, int64_t panel, const Vector (&sums)[VECTORS]) const {
        for (int v = 0; v < VECTORS; ++v) {
            const int64_t column = panel * PANEL + v * WIDTH, left = w.outputs - column;
            if (left <= 0) return;
            store_masked(out + row * stride + column, first_lanes(left), biased(sums[v], w, column));
        }
    }
};

// 64-byte aligned memory that grows and is never cleared.
class Buffer {
  public:
    template <class E>
    E* take(int64_t count) {
        const size_t bytes = size_t(rounded_up(count * int64_t(sizeof(E)), 64));
        if (bytes > size_) {
            memory_.reset(new (std::align_val_t(64)) uint8_t[bytes]);
            size_ = bytes;
        }
        return (E*)memory_.get();
    }

  private:
    struct Free {
        void operator()(uint8_t* p) const { operator delete[](p, std::align_val_t(64)); }
    };
    std::unique_ptr<uint8_t[], Free> memory_;
    size_t size_ = 0;
};

template <class T>
class Decoder {
  public:
    using Element = typename T::Element;

    Decoder(const Model& model, int threads) : m_(model), layers_(model.layer, model.layer + model.layers),
                                               team_(threads), scratch_(threads), attention_(threads) {
        int64_t most = std::max({m_.hidden, m_.width, m_.heads.heads * m_.heads.dim});
        for (auto& scratch : scratch_) scratch.template take<uint8_t>(scratch_bytes<T>(most));
        for (auto& one : attention_) one.reset(new AttentionScratch<T>);
    }

    void forward(const Step& step) {
        const Heads& h = m_.heads;
        const int64_t all = (h.heads + 2 * h.kv_heads) * h.dim;
        int64_t rows = step.rows;
        residual_ = residual_memory_.template take<float>(rows * m_.hidden);
        float* projected = projected_memory_.template take<float>(rows * all);
        Element* x = x_memory_.template take<Element>(rows * m_.hidden);
        Element* q = q_memory_.template take<Element>(rows * h.heads * h.dim);
        Element* mixed = mixed_memory_.template take<Element>(rows * h.heads * h.dim);
        Element* active = active_memory_.template take<Element>(rows * m_.width);
        locate(step);
        embed(step);
        for (int64_t index = 0; index < m_.layers; ++index) {
            const Layer& layer = layers_[index];
            Element* keys = (Element*)step.pool + index * 2 * step.blocks * h.block_size * h.kv_heads * h.dim;
            Element* values = keys + step.blocks * h.block_size * h.kv_heads * h.dim;
            norm(residual_, layer.input_norm, rows, x);
            multiply_rows(layer.qkv, x, rows, Store{projected, all, layer.qkv});
            turn(layer, projected, rows, q, keys, values);
            if (index + 1 == m_.layers) rows = keep_drawn(step, q);
            if (!rows) return;
            mix_heads(q, keys, values, mixed);
            multiply_rows(layer.output, mixed, rows, Add{residual_, m_.hidden, layer.output});
            norm(residual_, layer.mlp_norm, rows, x);
            multiply_rows(layer.gate_up, x, rows, Gate{active, m_.width, layer.gate_up});
            multiply_rows(layer.down, active, rows, Add{residual_, m_.hidden, layer.down});
        }
        norm(residual_, m_.norm, rows, x);
        multiply_rows(m_.head, x, rows, Store{step.logits, m_.vocabulary, m_.head});
    }

  private:
    struct Add {
        float* out;
        int64_t stride;
        const Matrix& w;
        void operator()(int64_t row, int64_t panel, const Vector (&sums)[VECTORS]) const {
            for (int v = 0; v < VECTORS; ++v) {
                const int64_t column = panel * PANEL + v * WIDTH;
                if (column >= w.outputs) return;
                float* to = out + row * stride + column;
                store(to, add(load(to), biased(sums[v], w, column)));
            }
        }
    };

    // A panel holds 32 columns of gate and the same 32 of up.
    struct Gate {
        Element* out;
        int64_t stride;
        const Matrix& w;
        void operator()(int64_t row, int64_t panel, const Vector (&sums)[VECTORS]) const {
            for (int v = 0; v < VECTORS / 2; ++v) {
                const int64_t column = panel * PANEL + v * WIDTH;
                const Vector gate = biased(sums[v], w, column);
                const Vector up = biased(sums[v + VECTORS / 2], w, column + PANEL / 2);
                T::store(out + row * stride + panel * PANEL / 2 + v * WIDTH, times(silu(gate), up));
            }
        }
    };

    template <class Sink>
    void multiply_rows(const Matrix& w, const Element* x, int64_t rows, const Sink& sink) {
        const int64_t panels = rounded_up(w.outputs, PANEL) / PANEL;
        const int64_t piece = std::max<int64_t>(1, panels / (8 * team_.size()));
        if constexpr (std::is_same_v<T, Float32>) {
            if (w.rounded) {
                const uint8_t* numbers = round_rows(x, rows, w.inputs);
                team_.share(panels, piece, [&](int, int64_t begin, int64_t end) {
                    integer_product(w, numbers, rows, begin, end, sink);
                });
                return;
            }
        }
        team_.share(panels, piece, [&](int worker, int64_t begin, int64_t end) {
            product<T>(w, x, rows, begin, end, scratch_[worker].template take<uint8_t>(0), sink);
        });
    }

    const uint8_t* round_rows(const float* x, int64_t rows, int64_t inputs) {
        const int64_t stride = rounded_bytes(inputs);
        uint8_t* to = rounded_memory_.template take<uint8_t>(rows * stride);
        share_rows(rows, [=](int64_t row) { round_row(x + row * inputs, inputs, to + row * stride); });
        return to;
    }

    // What every layer needs to know of the rows: where they stand, where their KV goes, and by how much they
    // are turned: 64 sines and cosines a row, which in each layer anew would take a twentieth of a prefill.
    void locate(const Step& step) {
        positions_.resize(step.rows);
        slots_.resize(step.rows);
        pieces_.clear();
        for (int64_t i = 0; i < step.spans; ++i) {
            const Span& span = step.span[i];
            cut(m_.heads, span, pieces_);
            for (int64_t j = 0; j < span.count; ++j) {
                const int64_t position = span.length - span.count + j, size = m_.heads.block_size;
                positions_[span.first + j] = position;
                slots_[span.first + j] = span.blocks[position / size] * size + position % size;
            }
        }
        const int64_t half = m_.heads.dim / 2;
        cosines_ = cosines_memory_.template take<float>(step.rows * half);
        sines_ = sines_memory_.template take<float>(step.rows * half);
        share_rows(step.rows, [&](int64_t row) {
            for (int64_t i = 0; i < half; ++i) {
                const float angle = float(positions_[row]) * m_.frequencies[i];
                cosines_[row * half + i] = std::cos(angle) * m_.magnitude;
                sines_[row * half + i] = std::sin(angle) * m_.magnitude;
            }
        });
    }

    void embed(const Step& step) {
        share_rows(step.rows, [&](int64_t row) {
            read_column(m_.embedding, step.tokens[row], residual_ + row * m_.hidden);
        });
    }

    // One output's weights: a column of a panel.
    static void read_column(const Matrix& w, int64_t output, float* to) {
        const uint8_t* panel = w.data + output / PANEL * panel_bytes<T>(w);
        const int64_t column = output % PANEL;
        auto keep = [to](int64_t word, const uint8_t* bits) {
            Element pair[T::PER_WORD];
            std::memcpy(pair, bits, sizeof pair);
            for (int i = 0; i < T::PER_WORD; ++i) to[word * T::PER_WORD + i] = T::widen(pair[i]);
        };
        if (w.format == PLAIN) {
            for (int64_t word = 0; word < w.inputs / T::PER_WORD; ++word) keep(word, panel + word * WORD_ROW + column * 4);
            return;
        }
        for (int64_t group = 0; group < w.inputs / GROUP; ++group) {
            const int64_t first = group * GROUP / T::PER_WORD;
            auto pick = [&](int word, typename T::Columns x) {
                alignas(64) uint8_t lanes[64];
                store_words(lanes, T::words(x));
                keep(first + word, lanes + column % WIDTH * 4);
            };
            expand<T>(w.format == FOUR_BIT, panel + group * group_bytes(w), int(column / WIDTH), pick);
        }
    }

    template <class Work>
    void share_rows(int64_t rows, const Work& work) {
        team_.share(rows, 8, [&](int, int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) work(row);
        });
    }

    static float root_mean_square(const float* from, int64_t size, float eps) {
        Vector squares = zeros();
        for (int64_t i = 0; i < size; i += WIDTH) {
            const Vector v = load(from + i);
            squares = times_add(v, v, squares);
        }
        return 1.0f / std::sqrt(sum(squares) / float(size) + eps);
    }

    void norm_row(const float* from, const float* weight, Element* to) const {
        const Vector scale = all(root_mean_square(from, m_.hidden, m_.eps));
        for (int64_t i = 0; i < m_.hidden; i += WIDTH)
            T::store(to + i, times(times(load(from + i), scale), load(weight + i)));
    }

    void norm(const float* from, const float* weight, int64_t rows, Element* to) {
        share_rows(rows, [&](int64_t row) { norm_row(from + row * m_.hidden, weight, to + row * m_.hidden); });
    }

    void head_norm(float* head, const float* weight) const {
        const float scale = root_mean_square(head, m_.heads.dim, m_.eps);
        for (int64_t i = 0; i < m_.heads.dim; ++i) head[i] = head[i] * scale * weight[i];
    }

    // Rotate q and k by their positions; k and v go to the cache.
    void turn(const Layer& layer, float* projected, int64_t rows, Element* q, Element* keys, Element* values) {
        const Heads& h = m_.heads;
        const int64_t half = h.dim / 2, turned = h.heads + h.kv_heads, all = turned + h.kv_heads;
        share_rows(rows, [&](int64_t row) {
            const float* cosines = cosines_ + row * half;
            const float* sines = sines_ + row * half;
            for (int64_t head = 0; head < all; ++head) {
                float* from = projected + (row * all + head) * h.dim;
                const bool query = head < h.heads;
                if (head < turned) {
                    if (layer.q_norm) head_norm(from, query ? layer.q_norm : layer.k_norm);
                    for (int64_t i = 0; i < half; ++i) {
                        const float first = from[i], second = from[i + half];
                        from[i] = first * cosines[i] - second * sines[i];
                        from[i + half] = second * cosines[i] + first * sines[i];
                    }
                }
                const int64_t kv_head = (head - h.heads) % h.kv_heads;
                Element* cache = (head < turned ? keys : values) + (slots_[row] * h.kv_heads + kv_head) * h.dim;
                Element* to = query ? q + (row * h.heads + head) * h.dim : cache;
                for (int64_t i = 0; i < h.dim; i += WIDTH) T::store(to + i, load(from + i));
            }
        });
    }

    // In the last layer, once its KV is written, only the rows that are drawn from matter: they become all the
    // rows that there are, in their order. Gives how many.
    int64_t keep_drawn(const Step& step, Element*& q) {
        const int32_t* drawn = step.drawn_rows;
        const int64_t width = m_.heads.heads * m_.heads.dim;
        float* residual = drawn_residual_memory_.template take<float>(step.drawn * m_.hidden);
        Element* queries = drawn_q_memory_.template take<Element>(step.drawn * width);
        for (int64_t i = 0; i < step.drawn; ++i) {
            std::memcpy(residual + i * m_.hidden, residual_ + drawn[i] * m_.hidden, m_.hidden * sizeof(float));
            std::memcpy(queries + i * width, q + drawn[i] * width, width * sizeof(Element));
        }
        residual_ = residual;
        q = queries;
        drawn_spans_.clear();
        for (int64_t i = 0, count; i < step.drawn; i += count) {
            const Span& span = *(std::upper_bound(step.span, step.span + step.spans, drawn[i],
                                                  [](int64_t row, const Span& one) { return row < one.first; }) - 1);
            const int64_t end = span.first + span.count;
            for (count = 1; i + count < step.drawn && drawn[i + count] == drawn[i] + count && drawn[i] + count < end;) ++count;
            drawn_spans_.push_back({i, count, positions_[drawn[i]] + count, span.blocks});
        }
        pieces_.clear();
        for (const Span& span : drawn_spans_) cut(m_.heads, span, pieces_);
        return step.drawn;
    }

    void mix_heads(const Element* q, const Element* keys, const Element* values, Element* out) {
        const int64_t count = int64_t(pieces_.size());
        const int64_t run = std::max<int64_t>(1, count / (8 * team_.size()));
        team_.share(count, run, [&](int worker, int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i)
                attend<T>(m_.heads, pieces_[i], q, keys, values, out, *attention_[worker]);
        });
    }

    const Model m_;
    const std::vector<Layer> layers_;
    Team team_;
    std::vector<Buffer> scratch_;
    std::vector<std::unique_ptr<AttentionScratch<T>>> attention_;
    Buffer residual_memory_, projected_memory_, x_memory_, q_memory_, mixed_memory_, active_memory_;
    Buffer cosines_memory_, sines_memory_, rounded_memory_, drawn_residual_memory_, drawn_q_memory_;
    std::vector<Span> drawn_spans_;
    std::vector<int64_t> positions_, slots_;
    std::vector<Piece> pieces_;
    float* residual_ = nullptr;
    float* cosines_ = nullptr;
    float* sines_ = nullptr;
};

}  // namespace tandem::LANES
