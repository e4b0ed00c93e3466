// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <harvest/status.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

/// Files of weights as Hugging Face keeps them: eight bytes with the header's length, little-endian; the
/// header, JSON that gives each tensor's name, dtype, shape and place; the tensors' bytes, one behind the
/// other.
namespace harvest::examples {

struct Tensor {
  std::string dtype;  ///< as files name it: "BF16"
  std::vector<std::uint64_t> shape;
  std::span<const std::byte> bytes;
};

using Tensors = std::map<std::string, Tensor, std::less<>>;  // by name

/// How many bytes a tensor has. Errors: invalid_argument (dtype, overflow, or the last byte is not whole).
[[nodiscard]] Result<std::uint64_t> tensor_bytes(std::string_view dtype,
                                                 std::span<const std::uint64_t> shape);

/// A file, mapped into memory and read only when somebody looks at its bytes. Who shortens the file meanwhile
/// stops the process that looks (SIGBUS).
class SafetensorsFile {
 public:
  /// Maps the file and checks all of its header: nothing in it is trusted, and no tensor's bytes are touched.
  /// Errors, each with the file's name, and the tensor's, the value and the limit where they apply:
  /// not_found, unavailable (the system cannot read or map it), malformed.
  [[nodiscard]] static Result<SafetensorsFile> open(const std::string& path);

  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&& other) noexcept;
  ~SafetensorsFile();

  [[nodiscard]] const Tensors& tensors() const { return tensors_; }
  /// Null if there is none of this name.
  [[nodiscard]] const Tensor* find(std::string_view name) const;
  /// All of the file, to be pinned as a whole: tensors begin within pages. Must not be written to.
  [[nodiscard]] std::span<std::byte> mapping() const { return mapping_; }

 private:
  SafetensorsFile() = default;
  std::span<std::byte> mapping_;
  Tensors tensors_;
};

/// Writes a file that `open` accepts. Requires: names are UTF-8, and none is `__metadata__`. Errors:
/// invalid_argument (a tensor whose bytes are not those of its dtype and shape), unavailable.
Status write_safetensors(const std::string& path, const Tensors& tensors);

}  // namespace harvest::examples
