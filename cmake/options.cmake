# Settings of the build. Nothing here touches a project that has Harvest as a part of it: flags are
# set on targets, and the rest only where Harvest is the top.
if(PROJECT_IS_TOP_LEVEL)
  if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
  endif()
  find_program(HARVEST_CCACHE ccache)
  if(HARVEST_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
    set(CMAKE_CXX_COMPILER_LAUNCHER ${HARVEST_CCACHE})
  endif()
endif()

set(HARVEST_SANITIZE "" CACHE STRING "Sanitizers to build with: address,undefined or thread")
set_property(CACHE HARVEST_SANITIZE PROPERTY STRINGS "" address,undefined thread)

# Warnings, sanitizers and clang's thread-safety analysis for a target of ours.
function(harvest_target_settings target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wnon-virtual-dtor)
  if(CMAKE_CXX_COMPILER_ID MATCHES Clang)
    target_compile_options(${target} PRIVATE -Wthread-safety -Wthread-safety-beta -Werror=thread-safety)
  endif()
  if(HARVEST_SANITIZE)
    target_compile_options(${target} PRIVATE
      -fsanitize=${HARVEST_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
    target_link_options(${target} PUBLIC -fsanitize=${HARVEST_SANITIZE})
  endif()
endfunction()
