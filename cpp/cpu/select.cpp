#include "cpu/select.h"

#include "cpu/float_mode.h"
#include "cpu/select_rounded.h"
#include "cpu/select_rows.h"
#include "kernels/list.h"

namespace fastsae::cpu {

void encode_select(const Selection& selection, Precision precision, RoundingTrials& trials, Scratch& scratch,
                   const Parallel& parallel) {
  FlushDenormals flush;
  with_scalar(selection.x.dtype, [&](auto s) {
    using S = decltype(s);
    const Provider provider = score_provider<S>(selection.x, selection.weight, precision);
    if constexpr (std::is_same_v<S, float>) {
      if (provider == Provider::panels && trials.wanted(selection.x, selection.weight, selection.values.cols))
        return encode_select_rounded(selection, trials, scratch, parallel);
    }
    SelectRows<S>(selection, provider, scratch, parallel).run();
  });
}

}  // namespace fastsae::cpu
