# HARVEST_CUDA decides about the CUDA backend. This version has none yet, so that a machine with a
# toolkit and one without build the same library.
set(HARVEST_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO (if the toolkit is found), ON or OFF")
set_property(CACHE HARVEST_CUDA PROPERTY STRINGS AUTO ON OFF)

function(harvest_decide_cuda)
  if(HARVEST_CUDA STREQUAL "ON")
    message(FATAL_ERROR "HARVEST_CUDA=ON: this version of Harvest has no CUDA backend yet. "
                        "Configure with HARVEST_CUDA=AUTO or OFF to use the simulated backend.")
  elseif(HARVEST_CUDA STREQUAL "AUTO")
    find_package(CUDAToolkit QUIET)
    if(CUDAToolkit_FOUND)
      set(found "toolkit ${CUDAToolkit_VERSION} found, but this version has no CUDA backend yet")
    else()
      set(found "no toolkit found")
    endif()
    message(STATUS "Harvest: CUDA: ${found}: the simulated backend is used")
  elseif(HARVEST_CUDA STREQUAL "OFF")
    message(STATUS "Harvest: CUDA: off: the simulated backend is used")
  else()
    message(FATAL_ERROR "HARVEST_CUDA=${HARVEST_CUDA}: it is one of AUTO, ON, OFF")
  endif()
endfunction()
harvest_decide_cuda()
