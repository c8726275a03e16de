// Sparsity penalties. The elementwise ones act on an activation; KL acts on a unit's mean activation.
#pragma once

#include "core/type_list.h"
#include "math/elementary.h"

namespace fastsae {

// Also the elementwise part of models whose penalty is none or KL.
struct NoPenalty {
  static constexpr const char* name = "none";
  template <class S>
  FS_HD static S value(S) {
    return S(0);
  }
  template <class S>
  FS_HD static S slope(S) {
    return S(0);
  }
};

struct L1Penalty {
  static constexpr const char* name = "l1";
  template <class S>
  FS_HD static S value(S a) {
    return absolute(a);
  }
  template <class S>
  FS_HD static S slope(S a) {
    return a > S(0) ? S(1) : (a < S(0) ? S(-1) : S(0));
  }
};

struct LogPenalty {
  static constexpr const char* name = "log";
  template <class S>
  FS_HD static S value(S a) {
    return log1p_of(a * a);
  }
  template <class S>
  FS_HD static S slope(S a) {
    return S(2) * a * (S(1) / (S(1) + a * a));  // a division of 1 needs no stack on older GPUs
  }
};

// KL(rho || q). q is clamped so that the value stays finite; the slope is that of the clamped q, never
// zero, so that saturated units still learn.
struct KlPenalty {
  static constexpr const char* name = "kl";
  FS_HD static double clamp(double q, double margin) {
    return q < margin ? margin : (q > 1 - margin ? 1 - margin : q);
  }
  FS_HD static double value(double rho, double q) {
    return rho * (natural_log(rho) - natural_log(q)) + (1 - rho) * (log1p_of(-rho) - log1p_of(-q));
  }
  FS_HD static double slope(double rho, double q) { return (q - rho) / (q * (1 - q)); }
};

using ElementPenalties = TypeList<NoPenalty, L1Penalty, LogPenalty>;

}  // namespace fastsae
