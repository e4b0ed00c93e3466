// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <array>
#include <harvest/kv/layout.hpp>
#include <string>

namespace harvest::kv {
namespace {

constexpr std::uint32_t kMostLayers = 1024;
constexpr std::uint32_t kMostPageTokens = 65536;
constexpr std::uint64_t kMostPageBytes = 1ULL << 30;
constexpr std::uint32_t kMostHeads = 1U << 20;  // and elements of one: no product of ours overflows

// In the order of the enumerators.
constexpr std::array<std::string_view, 5> kNames{"layer_first", "layer_first_interleaved",
                                                 "layer_first_split", "page_first", "transposed_values"};

bool parts_have_tensors(KvArrangement arrangement) {
  return arrangement == KvArrangement::layer_first_split || arrangement == KvArrangement::transposed_values;
}

Status check_range(const std::string& field, std::uint64_t value, std::uint64_t least, std::uint64_t most) {
  if (value >= least && value <= most) return {};
  return fail(ErrorCode::invalid_argument,
              fmt::format("{} is {}, the limits are {} and {}", field, value, least, most));
}

Status check_layer(std::uint32_t number, const KvLayer& layer) {
  const auto check = [&](std::string_view field, std::uint32_t value, std::uint32_t most) {
    return check_range(fmt::format("{} of layer {}", field, number), value, 1, most);
  };
  if (Status status = check("heads", layer.heads, kMostHeads); !status) return status;
  if (Status status = check("head_size", layer.head_size, kMostHeads); !status) return status;
  if (Status status = check("element_bytes", layer.element_bytes, 16); !status) return status;
  return check("parts", layer.parts, 2);
}

/// Before anything is added up.
Status check_model(std::span<const KvLayer> layers, std::uint32_t page_tokens, std::uint32_t pages) {
  if (Status status = check_range("the number of layers", layers.size(), 1, kMostLayers); !status)
    return status;
  if (Status status = check_range("page_tokens", page_tokens, 1, kMostPageTokens); !status) return status;
  if (Status status = check_range("pages", pages, 1, UINT32_MAX); !status) return status;
  std::uint64_t page_bytes = 0;
  for (std::uint32_t layer = 0; layer < layers.size(); ++layer) {
    if (Status status = check_layer(layer, layers[layer]); !status) return status;
    page_bytes += layers[layer].bytes_per_token() * page_tokens;  // below 2^62 each
    if (page_bytes > kMostPageBytes)
      return fail(ErrorCode::invalid_argument,
                  fmt::format("a page of {} tokens takes {} bytes up to layer {}, the limit is {}",
                              page_tokens, page_bytes, layer, kMostPageBytes));
  }
  return {};
}

Status check(KvArrangement arrangement, std::span<const KvLayer> layers, std::uint32_t page_tokens,
             std::uint32_t pages) {
  if (static_cast<std::size_t>(arrangement) >= kNames.size())
    return fail(ErrorCode::invalid_argument,
                fmt::format("there is no arrangement {}", static_cast<int>(arrangement)));
  return check_model(layers, page_tokens, pages);
}

/// What the arrangement expects.
std::vector<std::uint64_t> sizes_of(KvArrangement arrangement, const KvLayout& layout) {
  if (arrangement == KvArrangement::page_first) return {layout.pages * layout.page_bytes()};
  std::vector<std::uint64_t> sizes;
  for (const KvLayer& layer : layout.layers) {
    const std::uint64_t part = layout.page_tokens * layer.part_bytes_per_token() * layout.pages;
    if (parts_have_tensors(arrangement))
      sizes.insert(sizes.end(), layer.parts, part);
    else
      sizes.push_back(layer.parts * part);
  }
  return sizes;
}

class Describer {
 public:
  Describer(KvArrangement arrangement, KvLayout& layout, std::span<const KvTensor> tensors)
      : arrangement_(arrangement), layout_(layout), tensors_(tensors) {}

  Status describe() {
    if (Status status = check_tensors(); !status) return status;
    std::uint64_t offset = 0;  // in a page, of `page_first`
    for (std::uint32_t layer = 0; layer < layout_.layers.size(); ++layer) {
      for (std::uint32_t part = 0; part < layout_.layers[layer].parts; ++part) {
        layout_.parts.push_back(part_of(layer, part, offset));
        offset += bytes_of_part(layer);
      }
    }
    return layout_.validate();
  }

 private:
  [[nodiscard]] std::uint64_t bytes_of_part(std::uint32_t layer) const {
    return layout_.layers[layer].part_bytes_per_token() * layout_.page_tokens;
  }

  [[nodiscard]] Status check_tensors() const {
    const auto wanted = sizes_of(arrangement_, layout_);
    if (tensors_.size() != wanted.size())
      return fail(ErrorCode::invalid_argument,
                  fmt::format("{} tensors, but these layers are {} as {}", tensors_.size(), wanted.size(),
                              to_string(arrangement_)));
    for (std::size_t i = 0; i < wanted.size(); ++i) {
      if (tensors_[i].address == nullptr)
        return fail(ErrorCode::invalid_argument, fmt::format("tensor {} is null", i));
      if (tensors_[i].bytes != wanted[i])
        return fail(ErrorCode::invalid_argument,
                    fmt::format("tensor {} has {} bytes, but {} pages of {} tokens take {}", i,
                                tensors_[i].bytes, layout_.pages, layout_.page_tokens, wanted[i]));
    }
    return {};
  }

  [[nodiscard]] KvPart part_of(std::uint32_t layer, std::uint32_t part, std::uint64_t offset) {
    const std::uint64_t bytes = bytes_of_part(layer);
    switch (arrangement_) {
      case KvArrangement::layer_first:
        return {layer, tensors_[layer].address + part * layout_.pages * bytes, bytes, bytes, 1, 0};
      case KvArrangement::layer_first_interleaved:
        return {layer, tensors_[layer].address + part * bytes, layout_.layers[layer].parts * bytes, bytes, 1,
                0};
      case KvArrangement::page_first:
        return {layer, tensors_[0].address + offset, layout_.page_bytes(), bytes, 1, 0};
      case KvArrangement::layer_first_split: return {layer, tensors_[tensor_++].address, bytes, bytes, 1, 0};
      case KvArrangement::transposed_values: break;
    }
    std::byte* const base = tensors_[tensor_++].address;
    if (part == 0) return {layer, base, bytes, bytes, 1, 0};
    // A row for each element of a token's value, with that of all tokens behind each other.
    const KvLayer& shape = layout_.layers[layer];
    const std::uint64_t run = static_cast<std::uint64_t>(shape.element_bytes) * layout_.page_tokens;
    return {layer, base, run, run, shape.heads * shape.head_size, run * layout_.pages};
  }

  KvArrangement arrangement_;
  KvLayout& layout_;
  std::span<const KvTensor> tensors_;
  std::size_t tensor_ = 0;  ///< the next, where each part has its own
};

/// `count` pieces of `bytes` bytes, one every `stride`: no two overlap.
bool apart(std::uint64_t count, std::uint64_t stride, std::uint64_t bytes) {
  return count <= 1 || stride >= bytes;
}

/// Either a page's runs lie behind each other and pages apart, or, as with transposed values, a run of each
/// page behind each other and runs apart.
Status check_places(const KvLayout& layout, std::size_t number) {
  const KvPart& part = layout.parts[number];
  const auto between = [](std::uint64_t count, std::uint64_t stride) { return (count - 1) * stride; };
  const std::uint64_t most = (UINTPTR_MAX - reinterpret_cast<std::uintptr_t>(part.base)) / 4;
  if (part.page_stride_bytes > most / layout.pages || part.run_stride_bytes > most / part.runs)
    return fail(
        ErrorCode::invalid_argument,
        fmt::format("part {}, with pages every {} bytes and runs every {}, reaches beyond the last address",
                    number, part.page_stride_bytes, part.run_stride_bytes));
  const std::uint64_t page = between(part.runs, part.run_stride_bytes) + part.run_bytes;
  const std::uint64_t run_of_all = between(layout.pages, part.page_stride_bytes) + part.run_bytes;
  if ((apart(part.runs, part.run_stride_bytes, part.run_bytes) &&
       apart(layout.pages, part.page_stride_bytes, page)) ||
      (apart(layout.pages, part.page_stride_bytes, part.run_bytes) &&
       apart(part.runs, part.run_stride_bytes, run_of_all)))
    return {};
  return fail(
      ErrorCode::invalid_argument,
      fmt::format("the pages of part {} overlap: one every {} bytes, with {} runs of {} bytes, one every {}",
                  number, part.page_stride_bytes, part.runs, part.run_bytes, part.run_stride_bytes));
}

Status check_part(const KvLayout& layout, std::size_t number) {
  const KvPart& part = layout.parts[number];
  if (Status status =
          check_range(fmt::format("the layer of part {}", number), part.layer, 0, layout.layers.size() - 1);
      !status)
    return status;
  if (number > 0 && part.layer < layout.parts[number - 1].layer)
    return fail(ErrorCode::invalid_argument,
                fmt::format("part {} is of layer {} and stands behind one of layer {}", number, part.layer,
                            layout.parts[number - 1].layer));
  if (part.base == nullptr) return fail(ErrorCode::invalid_argument, fmt::format("part {} is null", number));
  const std::uint64_t bytes = layout.layer_page_bytes(part.layer);
  if (part.runs < 1 || part.run_bytes < 1 || part.run_bytes > bytes / part.runs)
    return fail(ErrorCode::invalid_argument,
                fmt::format("part {} has {} runs of {} bytes in a page, layer {} has {} bytes there", number,
                            part.runs, part.run_bytes, part.layer, bytes));
  return check_places(layout, number);
}

}  // namespace

std::uint64_t KvLayer::part_bytes_per_token() const {
  return static_cast<std::uint64_t>(heads) * head_size * element_bytes;
}

std::span<const std::string_view> kv_arrangement_names() {
  return kNames;
}

std::string_view to_string(KvArrangement arrangement) {
  const auto number = static_cast<std::size_t>(arrangement);
  return number < kNames.size() ? kNames[number] : "?";
}

Result<KvArrangement> kv_arrangement_from(std::string_view name) {
  for (std::size_t i = 0; i < kNames.size(); ++i)
    if (kNames[i] == name) return static_cast<KvArrangement>(i);
  return fail(ErrorCode::not_found,
              fmt::format("no arrangement is named '{}'; known are {}", name, fmt::join(kNames, ", ")));
}

Result<std::vector<std::uint64_t>> KvLayout::tensor_bytes(KvArrangement arrangement,
                                                          std::span<const KvLayer> layers,
                                                          std::uint32_t page_tokens, std::uint32_t pages) {
  if (Status status = check(arrangement, layers, page_tokens, pages); !status)
    return tl::unexpected(status.error());
  return sizes_of(arrangement, KvLayout{page_tokens, pages, {layers.begin(), layers.end()}, {}});
}

Result<KvLayout> KvLayout::describe(KvArrangement arrangement, std::span<const KvLayer> layers,
                                    std::uint32_t page_tokens, std::uint32_t pages,
                                    std::span<const KvTensor> tensors) {
  if (Status status = check(arrangement, layers, page_tokens, pages); !status)
    return tl::unexpected(status.error());
  KvLayout layout{page_tokens, pages, {layers.begin(), layers.end()}, {}};
  if (Status status = Describer(arrangement, layout, tensors).describe(); !status)
    return tl::unexpected(status.error());
  return layout;
}

std::uint64_t KvLayout::bytes_per_token() const {
  std::uint64_t bytes = 0;
  for (const KvLayer& layer : layers) bytes += layer.bytes_per_token();
  return bytes;
}

Status KvLayout::validate() const {
  if (Status status = check_model(layers, page_tokens, pages); !status) return status;
  std::vector<std::uint64_t> bytes(layers.size(), 0);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (Status status = check_part(*this, i); !status) return status;
    bytes[parts[i].layer] += parts[i].runs * parts[i].run_bytes;
  }
  for (std::uint32_t layer = 0; layer < layers.size(); ++layer)
    if (bytes[layer] != layer_page_bytes(layer))
      return fail(ErrorCode::invalid_argument,
                  fmt::format("the parts of layer {} have {} bytes in a page, {} tokens of it take {}", layer,
                              bytes[layer], page_tokens, layer_page_bytes(layer)));
  return {};
}

}  // namespace harvest::kv
