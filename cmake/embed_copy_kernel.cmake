# cmake -DOUTPUT=image.cpp (-DINPUT=file -DMADE_BY=text | -DWHY=text) -P embed_copy_kernel.cmake
# writes the source of copy_kernel_image(): the bytes of INPUT, or none and the reason.
if(INPUT)
  file(READ ${INPUT} hex HEX)
  string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
  string(REGEX REPLACE "(0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,0x..,)" "\\1\n"
         bytes "${bytes}")
  # The driver reads a fat binary as words.
  set(data "alignas(16) constexpr unsigned char kBytes[] = {\n${bytes}};\n")
  set(answer "{kBytes, \"${MADE_BY}\"}")
else()
  set(data "")
  set(answer "{{}, \"${WHY}\"}")
endif()
file(WRITE ${OUTPUT} "// Written by cmake/embed_copy_kernel.cmake.
#include \"backend/cuda/copy_kernel_image.hpp\"

namespace harvest::cuda {
namespace {
${data}}  // namespace

CopyKernelImage copy_kernel_image() { return ${answer}; }

}  // namespace harvest::cuda
")
