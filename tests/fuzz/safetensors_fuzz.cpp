// SPDX-License-Identifier: Apache-2.0
// Any bytes as a file of tensors. What is accepted lies within the file, each byte behind the header in
// exactly one tensor, has the bytes of its dtype and shape, and is the same when it is written out and read
// again; what is refused is refused with the file's name in one sentence.
#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>

#include "base/assert.hpp"
#include "fuzz/memory_file.hpp"
#include "safetensors.hpp"

namespace harvest::fuzz {
namespace {

using examples::SafetensorsFile;
using examples::Tensor;
using examples::Tensors;

std::uint64_t header_end(std::span<const std::byte> file) {
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof header_bytes);
  return sizeof header_bytes + header_bytes;
}

/// The header's text and, behind a zero byte, the data, as a file: in one that is given whole every change of
/// the header's length ends at the first eight bytes.
std::string framed(std::string_view input) {
  const std::string_view text = input.substr(0, input.find('\0'));
  const std::string_view data = input.substr(std::min(text.size() + 1, input.size()));
  const std::uint64_t header_bytes = (text.size() + 7) / 8 * 8;
  std::string file(sizeof header_bytes, '\0');
  std::memcpy(file.data(), &header_bytes, sizeof header_bytes);
  return file.append(text).append(header_bytes - text.size(), ' ').append(data);
}

void check_places(const Tensors& tensors, std::span<const std::byte> file) {
  const std::uint64_t begin = header_end(file);
  HARVEST_ASSERT(begin <= file.size(), "the header does not lie in the file");
  std::string covered(file.size() - begin, '\0');
  for (const auto& [name, tensor] : tensors) {
    const auto bytes = examples::tensor_bytes(tensor.dtype, tensor.shape);
    HARVEST_ASSERT(bytes && *bytes == tensor.bytes.size(), "a tensor has not the bytes of its shape");
    for (const std::byte& byte : tensor.bytes) {
      const auto place = static_cast<std::uint64_t>(&byte - file.data());
      HARVEST_ASSERT(place >= begin && place < file.size(), "a tensor lies outside of the file");
      HARVEST_ASSERT(++covered[place - begin] == 1, "a byte is of two tensors");
    }
  }
  HARVEST_ASSERT(covered.find('\0') == std::string::npos, "a byte is of no tensor");
}

bool same(const Tensor& a, const Tensor& b) {
  return a.dtype == b.dtype && a.shape == b.shape && std::ranges::equal(a.bytes, b.bytes);
}

void check_accepted(const SafetensorsFile& accepted) {
  check_places(accepted.tensors(), accepted.mapping());
  static const MemoryFile file;
  file.fill("");
  HARVEST_ASSERT(examples::write_safetensors(file.path(), accepted.tensors()), "it cannot be written out");
  const Result<SafetensorsFile> again = SafetensorsFile::open(file.path());
  HARVEST_ASSERT(again, again.error().message);
  HARVEST_ASSERT(std::ranges::equal(again->tensors(), accepted.tensors(),
                                    [](const auto& a, const auto& b) {
                                      return a.first == b.first && same(a.second, b.second);
                                    }),
                 "what was written out reads otherwise");
}

void check_refused(const Error& error, const std::string& path) {
  HARVEST_ASSERT(error.code == ErrorCode::malformed, error.message);
  HARVEST_ASSERT(error.message.starts_with(path + ": ") && error.message.size() < 512, error.message);
  HARVEST_ASSERT(std::ranges::none_of(error.message, [](char c) { return c >= 0 && c < 0x20; }),
                 error.message);
}

}  // namespace
}  // namespace harvest::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace harvest;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  static const fuzz::MemoryFile file;
  file.fill(input.starts_with('{') ? fuzz::framed(input) : std::string(input));
  const auto opened = examples::SafetensorsFile::open(file.path());
  if (opened)
    fuzz::check_accepted(*opened);
  else
    fuzz::check_refused(opened.error(), file.path());
  return 0;
}
