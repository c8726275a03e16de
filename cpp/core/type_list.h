// A closed list of types, and the position of a type in it.
#pragma once

#include <cstddef>
#include <type_traits>

namespace fastsae {

template <class... Ts>
struct TypeList {
  static constexpr std::size_t size = sizeof...(Ts);
};

template <class... Lists>
struct ConcatLists;
template <>
struct ConcatLists<> {
  using type = TypeList<>;
};
template <class... Ts>
struct ConcatLists<TypeList<Ts...>> {
  using type = TypeList<Ts...>;
};
template <class... As, class... Bs, class... Rest>
struct ConcatLists<TypeList<As...>, TypeList<Bs...>, Rest...> {
  using type = typename ConcatLists<TypeList<As..., Bs...>, Rest...>::type;
};
template <class... Lists>
using Concat = typename ConcatLists<Lists...>::type;

template <class T, class List>
struct IndexOf;
template <class T, class... Ts>
struct IndexOf<T, TypeList<Ts...>> {
  static constexpr std::size_t value = [] {
    const bool same[] = {std::is_same_v<T, Ts>...};
    std::size_t index = 0;
    while (index < sizeof...(Ts) && !same[index]) ++index;
    return index;
  }();
  static_assert(value < sizeof...(Ts), "this struct is not in the list: add it to kernels/list.h");
};

// Calls f with a null pointer to each type of the list.
template <class... Ts, class F>
void for_each_type(TypeList<Ts...>, F&& f) {
  (f(static_cast<Ts*>(nullptr)), ...);
}

}  // namespace fastsae
