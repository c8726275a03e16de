// A normal distribution with its log-variance, and its divergence from N(0, 1) (Kingma and Welling 2013, appendix B).
#pragma once

#include "math/elementary.h"

namespace fastsae {

struct Gaussian {
  // So that neither the variance nor its inverse overflows. Outside, slopes are those at the bound, which lead back.
  template <class S>
  FS_HD static S clamp(S log_variance) {
    const S above = log_variance < S(-30) ? S(-30) : log_variance;  // NaN stays NaN
    return above > S(20) ? S(20) : above;
  }
  template <class S>
  FS_HD static S kl(S mean, S log_variance, S variance) {
    return S(0.5) * (mean * mean + ((variance - S(1)) - log_variance));
  }
  template <class S>
  FS_HD static S slope_by_mean(S mean) {
    return mean;
  }
  template <class S>
  FS_HD static S slope_by_log_variance(S variance) {
    return S(0.5) * (variance - S(1));
  }
};

}  // namespace fastsae
