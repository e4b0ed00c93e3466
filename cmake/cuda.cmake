# HARVEST_CUDA decides about the CUDA backend: HARVEST_WITH_CUDA is the answer. Only the toolkit's headers
# and its runtime library are needed; nvcc, where it is there, adds the copy kernels. Nothing is linked with
# the driver, so what is built here also starts on machines without one.
set(HARVEST_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO (if the toolkit is found), ON or OFF")
set_property(CACHE HARVEST_CUDA PROPERTY STRINGS AUTO ON OFF)

set(HARVEST_CUDA_MINIMUM 12.4)
set(HARVEST_WITH_CUDA OFF)
if(NOT HARVEST_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "HARVEST_CUDA=${HARVEST_CUDA}: it is one of AUTO, ON, OFF")
endif()
if(NOT HARVEST_CUDA STREQUAL "OFF")
  find_package(CUDAToolkit ${HARVEST_CUDA_MINIMUM} QUIET)
  if(TARGET CUDA::cudart)
    set(HARVEST_WITH_CUDA ON)
  elseif(HARVEST_CUDA STREQUAL "ON")
    message(FATAL_ERROR "HARVEST_CUDA=ON: no CUDA toolkit of version ${HARVEST_CUDA_MINIMUM} or later was found "
                        "(found: '${CUDAToolkit_VERSION}'). Set CUDAToolkit_ROOT, or configure with "
                        "HARVEST_CUDA=AUTO or OFF to use the simulated backend alone.")
  endif()
endif()
if(HARVEST_WITH_CUDA)
  message(STATUS "Harvest: CUDA: toolkit ${CUDAToolkit_VERSION}")
else()
  message(STATUS "Harvest: CUDA: off: simulated machines only")
endif()
