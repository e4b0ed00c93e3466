# The copy kernel, compiled by nvcc and embedded as bytes: harvest_copy_kernel(target) adds the source
# of copy_kernel_image() to that target. Without an nvcc that works the image is empty, and copies go without it.
#
# Machine code for the GPUs of data centres and one generation of others; PTX of the oldest supported GPU for the
# rest, which the driver compiles. Code for sm_80 also runs on 8.6, 8.7 and 8.9, for sm_100 on 10.3, for sm_120 on
# 12.1 (CUDA C++ Programming Guide: binary compatibility within a major version).
set(HARVEST_CUDA_ARCHITECTURES "" CACHE STRING
    "Compute capabilities that the copy kernel is compiled for, like 90;100. Empty: what the toolkit's nvcc knows of 80, 90, 100, 120")

# Sets `out` to flags for nvcc, and `out`_for to what people read.
function(harvest_copy_kernel_flags out)
  set(wanted ${HARVEST_CUDA_ARCHITECTURES})
  if(NOT wanted)
    execute_process(COMMAND ${CUDAToolkit_NVCC_EXECUTABLE} --list-gpu-arch OUTPUT_VARIABLE known ERROR_QUIET)
    foreach(architecture 80 90 100 120)
      if(known MATCHES "compute_${architecture}([^0-9]|$)")
        list(APPEND wanted ${architecture})
      endif()
    endforeach()
  endif()
  set(flags -gencode=arch=compute_75,code=compute_75)
  foreach(architecture ${wanted})
    list(APPEND flags -gencode=arch=compute_${architecture},code=sm_${architecture})
  endforeach()
  set(${out} ${flags} PARENT_SCOPE)
  list(JOIN wanted " " wanted)
  set(${out}_for "${wanted}" PARENT_SCOPE)
endfunction()

function(harvest_copy_kernel target)
  set(folder ${PROJECT_SOURCE_DIR}/src/backend/cuda)
  set(build ${CMAKE_CURRENT_BINARY_DIR}/copy_kernel)
  set(why "built without nvcc")
  if(CUDAToolkit_NVCC_EXECUTABLE)
    harvest_copy_kernel_flags(architectures)
    set(flags --fatbin -std=c++17 -O3 -I${PROJECT_SOURCE_DIR}/src ${architectures})
    # An nvcc may be there and not work: no host compiler that it takes, architectures that it does not know.
    file(MAKE_DIRECTORY ${build})
    execute_process(
      COMMAND ${CUDAToolkit_NVCC_EXECUTABLE} ${flags} ${folder}/copy_kernel.cu -o ${build}/probe.fatbin
      RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
    if(NOT failed)
      set(why "")
    else()
      string(STRIP "${output}" output)
      message(STATUS "Harvest: CUDA: ${CUDAToolkit_NVCC_EXECUTABLE} does not compile the copy kernel: ${output}")
      set(why "built with an nvcc that does not compile it")
    endif()
  endif()

  set(image ${build}/copy_kernel_image.cpp)
  if(why)
    message(STATUS "Harvest: CUDA: no copy kernel (${why}): copies by the driver's calls alone")
    execute_process(COMMAND ${CMAKE_COMMAND} "-DWHY=${why}" -DOUTPUT=${image}
                            -P ${PROJECT_SOURCE_DIR}/cmake/embed_copy_kernel.cmake COMMAND_ERROR_IS_FATAL ANY)
  else()
    add_custom_command(
      OUTPUT ${image}
      COMMAND ${CUDAToolkit_NVCC_EXECUTABLE} ${flags} ${folder}/copy_kernel.cu -o ${build}/copy_kernel.fatbin
      COMMAND ${CMAKE_COMMAND} -DINPUT=${build}/copy_kernel.fatbin
              "-DMADE_BY=nvcc ${CUDAToolkit_VERSION} for ${architectures_for}" -DOUTPUT=${image}
              -P ${PROJECT_SOURCE_DIR}/cmake/embed_copy_kernel.cmake
      DEPENDS ${folder}/copy_kernel.cu ${folder}/copy_kernel.hpp
              ${PROJECT_SOURCE_DIR}/cmake/embed_copy_kernel.cmake
      COMMENT "Compiling the copy kernel with nvcc"
      VERBATIM)
  endif()
  # An object library, since a custom command is seen in its own folder alone.
  add_library(harvest_copy_kernel OBJECT ${image})
  target_compile_features(harvest_copy_kernel PRIVATE cxx_std_20)
  set_target_properties(harvest_copy_kernel PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_EXTENSIONS OFF)
  target_include_directories(harvest_copy_kernel PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:harvest_copy_kernel>)
endfunction()
