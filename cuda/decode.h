// Decoding a sparse code, a block for each row: its latents are gathered once for the output, and once more, from the
// cache, for the slopes.
#pragma once

#include "backend/sparse.h"
#include "jobs.h"
#include "math/elementary.h"

namespace fastsae::cuda {

// A member has every 256th column, and four of them on the way at once. The errors of a row pass from one to another only
// before the slopes, of which 32 members make four at once.
template <class S>
struct DecodeRow {
  static constexpr int members = 256, columns = 4, lanes = 32, at_once = 4, warps = members / lanes;
  using State = NoState;
  struct Shared {
    SumShared<2> sums;
    S part[at_once][members];
  };
  struct Element {
    const S* weight;
    const S* error;
  };
  Decoding d;

  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t row) const {
    const std::int64_t begin = d.code.begin(row), end = d.code.begin(row + 1);
    double losses[2];
    add_up(team, shared.sums, losses, [&](int member, double (&own)[2]) {
      for (std::int64_t col = member; col < d.errors.cols; col += members * columns)
        decode(row, begin, end, col, own);
    });
    if (!d.target.exists()) return;
    team.phase([&](int member, NoState&) {
      if (member != 0) return;
      const double share = static_cast<double>(d.row_weight.as<S>()[row]);
      d.losses.as<double>()[row] = share * losses[0];
      if (d.last_losses.exists()) d.last_losses.as<double>()[row] = share * losses[1];
    });
    find_slopes(team, shared, row, d.code, d.slopes);
    find_slopes(team, shared, row, d.more, d.more_slopes);
  }

 private:
  FS_HD S* errors(std::int64_t row, std::int64_t group) const {
    return d.errors.as<S>() + (row * d.slots + d.first_slot + group) * d.errors.stride;
  }
  // And their shadow, where they have one.
  FS_HD void put(S* error, S value) const {
    *error = value;
    if (d.errors.shadow != nullptr)
      static_cast<Bf16*>(d.errors.shadow)[error - d.errors.as<S>()] = Bf16::round(static_cast<float>(value));
  }
  FS_HD const S* latent(const Code& code, std::int64_t element) const {
    return d.weight.as<S>() + code.latents.as<std::int32_t>()[element] * d.weight.stride;
  }

  // Columns col, col + 256, ... of the row's outputs become errors; their squares are added to `losses`.
  FS_HD void decode(std::int64_t row, std::int64_t at, std::int64_t end, std::int64_t col,
                    double (&losses)[2]) const {
    const std::int32_t* latents = d.code.latents.as<std::int32_t>();
    const S* values = d.code.values.as<S>();
    const std::int64_t width = d.errors.cols;
    const int groups = d.prefixes.count;
    S y[columns];
    FS_UNROLL
    for (int i = 0; i < columns; ++i) {
      const std::int64_t c = col + i * members;
      y[i] = d.bias.exists() && c < width ? d.bias.as<S>()[c] : S(0);
      if (d.extra.exists() && c < width) y[i] += d.extra.as<S>()[row * d.extra.stride + c];
    }
    for (int group = 0; group < groups; ++group) {
      std::int64_t stop = end;
      if (group + 1 < groups) {
        stop = at;
        while (stop < end && latents[stop] < d.prefixes.ends[group]) ++stop;
      }
      for (; at < stop; ++at) {
        const S value = values[at];
        const S* weight = latent(d.code, at) + col;
        FS_UNROLL
        for (int i = 0; i < columns; ++i)
          if (col + i * members < width) y[i] += value * weight[i * members];
      }
      const double share = d.prefixes.weights[group];
      const S factor =
          d.target.exists()
              ? static_cast<S>(*d.factor * share * static_cast<double>(d.row_weight.as<S>()[row]))
              : S(0);
      S* out = errors(row, group) + col;
      FS_UNROLL
      for (int i = 0; i < columns; ++i) {
        if (col + i * members >= width) continue;
        if (!d.target.exists()) {
          put(out + i * members, y[i]);
          continue;
        }
        const S error = y[i] - d.target.as<S>()[row * d.target.stride + col + i * members];
        const double square = static_cast<double>(error * error);
        losses[0] += share * square;
        if (group + 1 == groups) losses[1] += square;
        put(out + i * members, factor * error);
        if (group + 1 == groups && d.residual.exists())
          d.residual.as<S>()[row * d.residual.stride + col + i * members] = -error;
      }
    }
    for (int group = groups - 1; group-- > 0;) {
      S* out = errors(row, group) + col;
      FS_UNROLL
      for (int i = 0; i < columns; ++i)
        if (col + i * members < width)
          put(out + i * members, out[i * members] + out[d.errors.stride + i * members]);
    }
  }

  // The gradient by each element of the row.
  template <class Team>
  FS_HD void find_slopes(Team& team, Shared& shared, std::int64_t row, const Code& code,
                         const Tensor& slopes) const {
    if (!slopes.exists()) return;
    const std::int64_t end = code.begin(row + 1);
    for (std::int64_t first = code.begin(row); first < end; first += warps * at_once)
      find_some(team, shared, row, code, slopes.as<S>(), first, end);
  }

  template <class Team>
  FS_HD void find_some(Team& team, Shared& shared, std::int64_t row, const Code& code, S* slopes,
                       std::int64_t first, std::int64_t end) const {
    const std::int32_t* latents = code.latents.as<std::int32_t>();
    const std::int64_t width = d.errors.cols;
    team.phase([&](int member, NoState&) {
      const std::int64_t from = first + member / lanes * at_once;
      Element of[at_once];
      S sum[at_once];
      FS_UNROLL
      for (int i = 0; i < at_once; ++i) {
        const std::int64_t element = from + i < end ? from + i : end - 1;
        int group = 0;
        while (latents[element] >= d.prefixes.ends[group]) ++group;
        of[i] = {latent(code, element), errors(row, group)};
        sum[i] = S(0);
      }
      for (std::int64_t col = member % lanes; col < width; col += lanes) {
        FS_UNROLL
        for (int i = 0; i < at_once; ++i) sum[i] += of[i].weight[col] * of[i].error[col];
      }
      FS_UNROLL
      for (int i = 0; i < at_once; ++i) shared.part[i][member] = sum[i];
    });
    team.phase([&](int member, NoState&) {
      if (member >= warps * at_once || first + member >= end) return;
      const S* part = shared.part[member % at_once] + member / at_once * lanes;
      S sum = 0;
      for (int i = 0; i < lanes; ++i) sum += part[i];
      slopes[first + member] = sum;
    });
  }
};

// A code in a row of zeros.
template <class S>
struct WriteRow {
  static constexpr int members = 256;
  using State = NoState;
  struct Shared {};
  Code code;
  Out<S> rows;
  std::int64_t cols;

  template <class Team>
  FS_HD void operator()(Team& team, Shared&, std::int64_t row) const {
    team.phase([&](int member, NoState&) {
      for (std::int64_t col = member; col < cols; col += members) rows.put(row, col, S(0));
    });
    team.phase([&](int member, NoState&) {
      const std::int64_t end = code.begin(row + 1);
      for (std::int64_t i = code.begin(row) + member; i < end; i += members)
        rows.put(row, code.latents.as<std::int32_t>()[i], code.values.as<S>()[i]);
    });
  }
};

// The norms of eight rows.
template <class S>
struct RowNorms {
  static constexpr int members = 256, lanes = 32, rows = members / lanes;
  using State = NoState;
  struct Shared {
    S part[members];
  };
  Tensor of, norms;

  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t block) const {
    team.phase([&](int member, NoState&) {
      const std::int64_t row = block * rows + member / lanes;
      S sum = 0;
      for (std::int64_t col = member % lanes; row < of.rows && col < of.cols; col += lanes) {
        const S x = of.as<S>()[row * of.stride + col];
        sum += x * x;
      }
      shared.part[member] = sum;
    });
    team.phase([&](int member, NoState&) {
      if (member >= rows || block * rows + member >= of.rows) return;
      S sum = 0;
      for (int i = 0; i < lanes; ++i) sum += shared.part[member * lanes + i];
      norms.as<S>()[block * rows + member] = square_root(sum);
    });
  }
};

// launch(job, blocks) runs a job.
template <class Launch>
void decode_rows(const Launch& launch, const Decoding& decoding) {
  with_scalar(decoding.errors.dtype,
              [&](auto s) { launch(DecodeRow<decltype(s)>{decoding}, decoding.code.rows); });
}

template <class Launch>
void write_code_rows(const Launch& launch, const Code& code, const Tensor& rows) {
  with_scalar(rows.dtype, [&](auto s) {
    using S = decltype(s);
    launch(WriteRow<S>{code, Out<S>(rows), rows.cols}, rows.rows);
  });
}

template <class Launch>
void norms_of_rows(const Launch& launch, const Tensor& of, const Tensor& norms) {
  with_scalar(of.dtype, [&](auto s) {
    using S = decltype(s);
    launch(RowNorms<S>{of, norms}, blocks_for(of.rows, RowNorms<S>::rows));
  });
}

}  // namespace fastsae::cuda
