// One parameter's update from its gradient, in PyTorch's form. m and v are what is kept between steps.
// Every scalar is computed in double, 1 - beta included.
#pragma once

#include "core/type_list.h"
#include "math/elementary.h"

namespace fastsae {

struct OptimizerConstants {
  double momentum, beta1, beta2, epsilon;
  double decoupled_decay;  // of AdamW, for this parameter
};

struct SgdStep {
  static constexpr const char* name = "sgd";
  static constexpr int moments = 0;
  static constexpr bool has_brief_moments = false;
  template <class S>
  struct Scalars {
    S rate;
  };
  template <class S, class Step>
  FS_HD static Scalars<S> at_step(const OptimizerConstants&, const Step& step) {
    return {static_cast<S>(step.learning_rate)};
  }
  template <class S>
  FS_HD static S next(S p, S g, S&, S&, const Scalars<S>& c) {
    return p - c.rate * g;
  }
};

struct MomentumScalars {
  static constexpr int moments = 1;
  static constexpr bool has_brief_moments = true;  // whether they can be kept in few bits
  template <class S>
  struct Scalars {
    S rate, momentum;
  };
  template <class S, class Step>
  FS_HD static Scalars<S> at_step(const OptimizerConstants& c, const Step& step) {
    return {static_cast<S>(step.learning_rate), static_cast<S>(c.momentum)};
  }
};

struct MomentumStep : MomentumScalars {
  static constexpr const char* name = "momentum";
  template <class S>
  FS_HD static S next(S p, S g, S& m, S&, const Scalars<S>& c) {
    m = c.momentum * m + g;
    return p - c.rate * m;
  }
};

struct NesterovStep : MomentumScalars {
  static constexpr const char* name = "nesterov";
  template <class S>
  FS_HD static S next(S p, S g, S& m, S&, const Scalars<S>& c) {
    m = c.momentum * m + g;
    return p - c.rate * (g + c.momentum * m);
  }
};

struct AdamStep {
  static constexpr const char* name = "adam";
  static constexpr int moments = 2;
  static constexpr bool has_brief_moments = true;
  template <class S>
  struct Scalars {
    S rate;             // learning rate / (1 - beta1^t)
    S root_correction;  // 1 / sqrt(1 - beta2^t)
    S beta1, one_minus_beta1, beta2, one_minus_beta2, epsilon;
    S keep;  // 1 - learning rate * decoupled decay; 1 for Adam
  };
  template <class S, class Step>
  FS_HD static Scalars<S> at_step(const OptimizerConstants& c, const Step& step) {
    return {static_cast<S>(step.adam_rate), static_cast<S>(step.root_correction),
            static_cast<S>(c.beta1),        static_cast<S>(1 - c.beta1),
            static_cast<S>(c.beta2),        static_cast<S>(1 - c.beta2),
            static_cast<S>(c.epsilon),      static_cast<S>(1 - step.learning_rate * c.decoupled_decay)};
  }
  template <class S>
  FS_HD static S next(S p, S g, S& m, S& v, const Scalars<S>& c) {
    m = c.beta1 * m + c.one_minus_beta1 * g;
    v = c.beta2 * v + c.one_minus_beta2 * g * g;
    return c.keep * p - c.rate * (m / (square_root(v) * c.root_correction + c.epsilon));
  }
};

// Steps of one length along the signs of the gradient (Bernstein et al., signSGD, 2018), averaged without a schedule
// (Defazio et al., The Road Less Scheduled, 2024): z takes the steps, x is the mean of where z has been, and p lies
// between the two. Of x and z only z is kept: p and z tell x.
struct SignSgdStep {
  static constexpr const char* name = "sign_sgd";
  static constexpr int moments = 1;
  static constexpr bool has_brief_moments = false;  // z is where the parameter is
  template <class S>
  struct Scalars {
    S rate;
    S share;    // of the new z in the mean
    S forward;  // 1 - momentum: p = x + forward (z - x)
    S back;     // 1 - 1 / momentum: x = p + back (z - p)
  };
  template <class S, class Step>
  FS_HD static Scalars<S> at_step(const OptimizerConstants& c, const Step& step) {
    return {static_cast<S>(step.learning_rate), static_cast<S>(step.average_share),
            static_cast<S>(1 - c.momentum), static_cast<S>(1 - 1 / c.momentum)};
  }
  template <class S>
  FS_HD static S average(S p, S z, S back) {
    return p + back * (z - p);
  }
  template <class S>
  FS_HD static S next(S p, S g, S& z, S&, const Scalars<S>& c) {
    const S before = average(p, z, c.back);
    z = z - c.rate * (S(g > 0) - S(g < 0));
    const S x = before + c.share * (z - before);
    return x + c.forward * (z - x);
  }
};

using OptimizerSteps = TypeList<SgdStep, MomentumStep, NesterovStep, AdamStep, SignSgdStep>;

}  // namespace fastsae
