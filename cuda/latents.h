// What a step does with each latent, a block for each: both gradient rows are summed up where only the block's members see
// them, and used at once. Long lists are cut in pieces, whose sums are made before.
//
// A member has every 256th column of both rows from the first to the last phase.
#pragma once

#include <algorithm>
#include <cstddef>

#include "backend/sparse.h"
#include "moments.h"

namespace fastsae::cuda {

// Both rows' gradients lie one after the other in memory of the block: shared memory, or where that is too small, or so
// large that few blocks have room on a multiprocessor, in a share of `spare`.
struct LatentMemory {
  static constexpr std::int64_t most_shared = std::int64_t{40} << 10, spare_blocks = 1024;
  std::size_t bytes;  // of a block
  void* spare = nullptr;
  std::int64_t latents;

  explicit LatentMemory(const LatentRows& rows)
      : bytes(static_cast<std::size_t>(rows.encoder.cols + rows.decoder.cols) * size_of(rows.encoder.dtype)),
        latents(rows.encoder.rows) {}
  bool in_shared() const { return static_cast<std::int64_t>(bytes) <= most_shared; }
  std::int64_t blocks() const { return in_shared() ? latents : std::min(latents, spare_blocks); }
  std::size_t spare_bytes() const { return in_shared() ? 0 : bytes * static_cast<std::size_t>(blocks()); }
};

template <class S>
struct LatentWork {
  static constexpr int members = 256, columns = 4;
  using State = NoState;
  using Shared = SumShared<2>;
  LatentRows rows;

  // to[col] = the sum over elements [begin, end) of share[element] times its row of `of`, which is row slot / divisor.
  FS_HD void sum(int member, std::int64_t begin, std::int64_t end, const Tensor& of, std::int32_t divisor,
                 const S* share, S* to) const {
    const std::int32_t* slots = rows.index.slots.as<std::int32_t>();
    for (std::int64_t col = member; col < of.cols; col += members * columns) {
      S own[columns];
      FS_UNROLL
      for (int i = 0; i < columns; ++i) own[i] = S(0);
      for (std::int64_t at = begin; at < end; ++at) {
        const std::int32_t row = divisor == 1 ? slots[at] : slots[at] / divisor;
        const S* from = of.as<S>() + row * of.stride + col;
        const S factor = share[at];
        FS_UNROLL
        for (int i = 0; i < columns; ++i)
          if (col + i * members < of.cols) own[i] += factor * from[i * members];
      }
      FS_UNROLL
      for (int i = 0; i < columns; ++i)
        if (col + i * members < of.cols) to[col + i * members] = own[i];
    }
  }
  FS_HD void sum(int member, std::int64_t begin, std::int64_t end, S* to) const {
    sum(member, begin, end, rows.inputs, static_cast<std::int32_t>(rows.slots), rows.index.slopes.as<S>(),
        to);
    sum(member, begin, end, rows.errors, 1, rows.index.values.as<S>(), to + rows.encoder.cols);
  }

  FS_HD void add_pieces(int member, std::int64_t latent, std::int64_t count, S* to) const {
    const std::int64_t pieces = blocks_for(count, LatentIndex::kSegment), width = rows.index.partials.cols;
    const std::int64_t first = first_piece(latent);
    for (std::int64_t col = member; col < width; col += members) {
      S own = 0;
      for (std::int64_t i = first; i < first + pieces; ++i)
        own += rows.index.partials.as<S>()[i * rows.index.partials.stride + col];
      to[col] = own;
    }
  }
  // Pieces are in the order of latents; those that are not used have latent -1.
  FS_HD std::int64_t first_piece(std::int64_t latent) const {
    const std::int32_t* segments = rows.index.segments.as<std::int32_t>();
    std::int64_t low = 0, high = rows.index.segments.rows;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (segments[2 * middle] >= 0 && segments[2 * middle] < latent)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

  // A member's columns of both gradients.
  FS_HD void gather(int member, std::int64_t latent, S* to) const {
    if (rows.index.begins.exists()) {
      const std::int32_t* begins = rows.index.begins.as<std::int32_t>();
      const std::int64_t begin = begins[latent], end = begins[latent + 1];
      if (end - begin <= LatentIndex::kSegment)
        sum(member, begin, end, to);
      else
        add_pieces(member, latent, end - begin, to);
      if (rows.has_matrices()) take_matrices(member, latent, true, to);
    } else {
      take_matrices(member, latent, false, to);
    }
  }
  FS_HD void take_matrices(int member, std::int64_t latent, bool add, S* to) const {
    const std::int64_t features = rows.encoder.cols, outputs = rows.decoder.cols;
    const auto take = [&](const Tensor& gradient, std::int64_t cols, S* own) {
      for (std::int64_t col = member; col < cols; col += members) {
        const S value = gradient.as<S>()[latent * gradient.stride + col];
        own[col] = add ? own[col] + value : value;
      }
    };
    take(rows.encoder_gradient, features, to);
    take(rows.decoder_gradient, outputs, to + features);
  }

  FS_HD const S* decoder(std::int64_t latent) const {
    return rows.decoder.as<S>() + latent * rows.decoder.stride;
  }

  // Adds what pulls at the decoder's row and leaves out what is parallel to it; afterwards a member knows the other
  // columns' share of neither.
  template <class Team>
  FS_HD void finish(Team& team, Shared& shared, std::int64_t latent, S* gradient, bool project) const {
    const std::int64_t outputs = rows.decoder.cols;
    S* own_decoder = gradient + rows.encoder.cols;
    const S* row = decoder(latent);
    if (rows.pull.exists()) {
      const S pull = static_cast<S>(rows.pull.as<double>()[latent]);
      team.phase([&](int member, NoState&) {
        for (std::int64_t col = member; col < outputs; col += members) own_decoder[col] += pull * row[col];
      });
    }
    if (!project) return;
    double sums[2];
    add_up(team, shared, sums, [&](int member, double (&own)[2]) {
      S along = 0, square = 0;
      for (std::int64_t col = member; col < outputs; col += members) {
        along += own_decoder[col] * row[col];
        square += row[col] * row[col];
      }
      own[0] = static_cast<double>(along);
      own[1] = static_cast<double>(square);
    });
    if (sums[1] == 0) return;
    const S share = static_cast<S>(-sums[0] / sums[1]);
    team.phase([&](int member, NoState&) {
      for (std::int64_t col = member; col < outputs; col += members) own_decoder[col] += share * row[col];
    });
  }
};

// The sums of a piece of a long list.
template <class S>
struct SumPiece {
  static constexpr int members = LatentWork<S>::members;
  using State = NoState;
  struct Shared {};
  LatentWork<S> work;

  template <class Team>
  FS_HD void operator()(Team& team, Shared&, std::int64_t piece) const {
    const LatentIndex& index = work.rows.index;
    const std::int32_t latent = index.segments.template as<std::int32_t>()[2 * piece];
    if (latent < 0) return;
    const std::int64_t begin = index.segments.template as<std::int32_t>()[2 * piece + 1];
    const std::int64_t end = index.begins.template as<std::int32_t>()[latent + 1];
    const std::int64_t stop = end < begin + LatentIndex::kSegment ? end : begin + LatentIndex::kSegment;
    team.phase([&](int member, NoState&) {
      work.sum(member, begin, stop, index.partials.template as<S>() + piece * index.partials.stride);
    });
  }
};

// The three below are run as job(team, shared, memory, latent).
template <class S>
struct MeasureLatent {
  LatentWork<S> work;
  Tensor squares, sums;

  template <class Team>
  FS_HD void operator()(Team& team, SumShared<2>& shared, S* gradient, std::int64_t latent) const {
    const LatentRows& rows = work.rows;
    team.phase([&](int member, NoState&) { work.gather(member, latent, gradient); });
    work.finish(team, shared, latent, gradient, rows.project);
    const std::int64_t width = rows.encoder.cols + rows.decoder.cols;
    double found[2];
    add_up(team, shared, found, [&](int member, double (&own)[2]) {
      for (std::int64_t part = 0; part < 2; ++part) {
        const std::int64_t begin = part == 0 ? 0 : rows.encoder.cols,
                           end = part == 0 ? begin + rows.encoder.cols : width;
        S square = 0;
        for (std::int64_t col = begin + member; col < end; col += work.members)
          square += gradient[col] * gradient[col];
        own[0] += static_cast<double>(square);
      }
      if (!sums.exists()) return;
      const std::int32_t* begins = rows.index.begins.template as<std::int32_t>();
      for (std::int64_t at = begins[latent] + member; at < begins[latent + 1]; at += work.members)
        own[1] += static_cast<double>(rows.index.slopes.template as<S>()[at]);
    });
    team.phase([&](int member, NoState&) {
      if (member != 0) return;
      squares.as<double>()[latent] = found[0];
      if (sums.exists()) sums.as<S>()[latent] = static_cast<S>(found[1]);
    });
  }
};

template <class S>
struct WriteLatent {
  LatentWork<S> work;
  Out<S> encoder, decoder;

  template <class Team>
  FS_HD void operator()(Team& team, SumShared<2>& shared, S* gradient, std::int64_t latent) const {
    const LatentRows& rows = work.rows;
    team.phase([&](int member, NoState&) { work.gather(member, latent, gradient); });
    work.finish(team, shared, latent, gradient, false);
    team.phase([&](int member, NoState&) {
      for (std::int64_t col = member; col < rows.encoder.cols; col += work.members)
        encoder.put(latent, col, gradient[col]);
      for (std::int64_t col = member; col < rows.decoder.cols; col += work.members)
        decoder.put(latent, col, gradient[rows.encoder.cols + col]);
    });
  }
};

template <class S, class Step, class Kept>
struct UpdateLatent {
  LatentWork<S> work;
  LatentUpdate update;
  Out<S> encoder, decoder;

  template <class Team>
  FS_HD void operator()(Team& team, SumShared<2>& shared, S* gradient, std::int64_t latent) const {
    const LatentRows& rows = work.rows;
    const std::int64_t features = rows.encoder.cols, outputs = rows.decoder.cols;
    if (update.log->failed != 0) return;
    const S scale = static_cast<S>(update.log->gradient_scale);
    team.phase([&](int member, NoState&) { work.gather(member, latent, gradient); });
    work.finish(team, shared, latent, gradient, rows.project);
    FS_NO_UNROLL
    for (int part = 0; part < 2; ++part) {  // the formula is there once
      const Part of{part == 0 ? update.encoder : update.decoder, part == 0 ? encoder : decoder,
                    part == 0 ? features : outputs, part == 0 ? gradient : gradient + features,
                    moment_row(latent, part == 1)};
      if constexpr (std::is_same_v<Kept, ByteMoments>)
        step_blocks(team, shared, latent, of, scale);
      else
        team.each([&](int member, NoState&) { step(member, latent, of, scale); });
    }
    // Whether or not anything is added up: members wait here until nobody needs the gradients.
    double sums[2];
    add_up(team, shared, sums, [&](int member, double (&own)[2]) {
      if (!update.unit_norm) return;
      S square = 0;
      for (std::int64_t col = member; col < outputs; col += work.members)
        square += gradient[features + col] * gradient[features + col];
      own[0] = static_cast<double>(square);
    });
    if (!update.unit_norm || sums[0] == 0) return;
    const S norm = static_cast<S>(square_root(sums[0]));
    team.phase([&](int member, NoState&) {
      for (std::int64_t col = member; col < outputs; col += work.members)
        decoder.put(latent, col, gradient[features + col] / norm);
    });
  }

 private:
  // A row of one matrix. The gradient becomes what the row is now.
  struct Part {
    const MatrixUpdate& how;
    const Out<S>& value;
    std::int64_t cols;
    S* gradient;
    double drawn_row;
  };

  FS_HD void step(int member, std::int64_t latent, const Part& of, S scale) const {
    const auto scalars = Step::template at_step<S>(of.how.constants, *update.step);
    Random4 words{};  // of this column and three more
    const auto next = [&](std::int64_t col) {
      const S p = of.value.at(latent, col), g = scale * of.gradient[col];
      if constexpr (std::is_same_v<Kept, Bf16Moments>) {
        if (col % kDrawnColumns < kMomentBlock) words = drawn(of, col);
        return Bf16Column<S, Step>(of.how, latent, col).step(p, g, scalars, word_of(words, col));
      } else {
        S* const m =
            of.how.first.template as<S>() + (Step::moments > 0 ? latent * of.how.first.stride + col : 0);
        S* const v =
            of.how.second.template as<S>() + (Step::moments > 1 ? latent * of.how.second.stride + col : 0);
        S first = Step::moments > 0 ? *m : S(0), second = Step::moments > 1 ? *v : S(0);
        const S made = Step::next(p, g, first, second, scalars);
        if (Step::moments > 0) *m = first;
        if (Step::moments > 1) *v = second;
        return made;
      }
    };
    FS_NO_UNROLL
    for (std::int64_t col = member; col < of.cols; col += work.members) {
      const S made = next(col);
      of.value.put(latent, col, made);
      of.gradient[col] = made;
    }
  }

  FS_HD Random4 drawn(const Part& of, std::int64_t col) const {
    return moment_chances(update.step->seed, update.step->step, of.drawn_row, col);
  }

  // Of moments in 8 bits: what a block's scale is, all its members must know before one is kept.
  template <class Team>
  FS_HD void step_blocks(Team& team, SumShared<2>& shared, std::int64_t latent, const Part& of,
                         S scale) const {
    static_assert(kMomentBlock == LatentWork<S>::members);
    FS_NO_UNROLL
    for (std::int64_t begin = 0; begin < of.cols; begin += kMomentBlock) {
      team.phase([&](int member, NoState&) {
        const std::int64_t col = begin + member;
        shared.part[0][member] = shared.part[1][member] = 0;
        if (col >= of.cols) return;
        const auto scalars = Step::template at_step<S>(of.how.constants, *update.step);
        const S made = ByteColumn<S, Step>(of.how, latent, col)
                           .step(of.value.at(latent, col), scale * of.gradient[col], scalars,
                                 shared.part[0][member], shared.part[1][member]);
        of.value.put(latent, col, made);
        of.gradient[col] = made;
      });
      team.phase([&](int member, NoState&) { find_largest(member, shared); });
      team.phase([&](int member, NoState&) {
        const std::int64_t col = begin + member;
        if (col >= of.cols) return;
        ByteColumn<S, Step>(of.how, latent, col)
            .keep(shared.part[0][member], shared.part[1][member], static_cast<S>(largest_of(shared, 0)),
                  static_cast<S>(largest_of(shared, 1)), word_of(drawn(of, col), col), member == 0);
      });
    }
  }
};

// Latents block, block + blocks, ... of a job above; `memory` is where the block's members have theirs.
template <class S, class Job, class Team>
FS_HD void latents_block(Team& team, const Job& job, SumShared<2>& shared, std::int64_t block,
                         std::int64_t blocks, S* memory) {
  for (std::int64_t latent = block; latent < job.work.rows.encoder.rows; latent += blocks)
    job(team, shared, memory, latent);
}

// launch(job, blocks) runs a job; each(job) runs one of the jobs above for all latents.
template <class Launch, class Each>
void measure_all(const Launch& launch, const Each& each, const LatentRows& rows, const Tensor& squares,
                 const Tensor& sums) {
  with_scalar(rows.encoder.dtype, [&](auto s) {
    using S = decltype(s);
    if (rows.index.begins.exists()) launch(SumPiece<S>{{rows}}, rows.index.segments.rows);
    each(s, MeasureLatent<S>{{rows}, squares, sums});
  });
}

template <class Each>
void write_all(const Each& each, const LatentRows& rows, const Tensor& encoder, const Tensor& decoder) {
  with_scalar(rows.encoder.dtype, [&](auto s) {
    using S = decltype(s);
    each(s, WriteLatent<S>{{rows}, Out<S>(encoder), Out<S>(decoder)});
  });
}

template <class Each>
void update_all(const Each& each, const LatentRows& rows, const LatentUpdate& update) {
  int place = 0;
  for_each_type(OptimizerSteps{}, [&](auto* step) {
    using Step = std::remove_pointer_t<decltype(step)>;
    if (place++ != update.encoder.optimizer) return;
    with_scalar(rows.encoder.dtype, [&](auto s) {
      using S = decltype(s);
      const auto with = [&](auto kept) {
        each(s, UpdateLatent<S, Step, decltype(kept)>{
                    {rows}, update, Out<S>(rows.encoder), Out<S>(rows.decoder)});
      };
      if constexpr (Step::has_brief_moments)
        with_moments(update.encoder.first.dtype, with);
      else
        with(WholeMoments{});
    });
  });
}

}  // namespace fastsae::cuda
