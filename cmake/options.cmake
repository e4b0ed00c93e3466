# Settings that every target of this project shares.
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

find_program(HARVEST_CCACHE ccache)
if(HARVEST_CCACHE AND PROJECT_IS_TOP_LEVEL AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${HARVEST_CCACHE})
endif()

set(HARVEST_SANITIZE "" CACHE STRING "Sanitizers to build with: address,undefined or thread")
set(HARVEST_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO (if the toolkit is found), ON or OFF")
set_property(CACHE HARVEST_CUDA PROPERTY STRINGS AUTO ON OFF)

# Warnings, sanitizers and clang's thread-safety analysis for a target of ours.
function(harvest_target_settings target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wnon-virtual-dtor)
  if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
    target_compile_options(${target} PRIVATE -Wthread-safety -Wthread-safety-beta -Werror=thread-safety)
  endif()
  if(HARVEST_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${HARVEST_SANITIZE} -fno-omit-frame-pointer -g)
    target_link_options(${target} PUBLIC -fsanitize=${HARVEST_SANITIZE})
  endif()
endfunction()
