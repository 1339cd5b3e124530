# docker buildx bake [cuda12-8 | cuda13 | cpu]; REPOSITORY, VERSION and MODEL_NAME are variables of the environment.

variable "REPOSITORY" { default = "worker-ember" }
variable "VERSION" { default = "latest" }

# A model to bake in; its token: HF_TOKEN of the environment, as a secret that no layer holds.
variable "MODEL_NAME" { default = "" }
variable "MODEL_REVISION" { default = "" }
variable "TOKENIZER_NAME" { default = "" }
variable "TOKENIZER_REVISION" { default = "" }

group "default" {
  targets = ["cuda12-8"]
}

group "all" {
  targets = ["cuda12-8", "cuda13", "cpu"]
}

target "common" {
  context    = "."
  dockerfile = "Dockerfile"
  platforms  = ["linux/amd64"]
  args = {
    MODEL_NAME         = MODEL_NAME
    MODEL_REVISION     = MODEL_REVISION
    TOKENIZER_NAME     = TOKENIZER_NAME
    TOKENIZER_REVISION = TOKENIZER_REVISION
  }
  secret = ["type=env,id=HF_TOKEN"]
}

# Runs on drivers for CUDA 12.8 and later, so on all of the fleet.
target "cuda12-8" {
  inherits = ["common"]
  tags     = ["${REPOSITORY}:${VERSION}", "${REPOSITORY}:${VERSION}-cuda12.8"]
  args = {
    TORCH_VERSION = "2.11.0+cu128"
    TORCH_INDEX   = "https://download.pytorch.org/whl/cu128"
  }
}

# The newest torch, for drivers that know CUDA 13; a third smaller.
target "cuda13" {
  inherits = ["common"]
  tags     = ["${REPOSITORY}:${VERSION}-cuda13"]
  args = {
    TORCH_VERSION = "2.13.0+cu130"
    TORCH_INDEX   = "https://download.pytorch.org/whl/cu130"
  }
}

target "cpu" {
  inherits = ["common"]
  tags     = ["${REPOSITORY}:${VERSION}-cpu"]
  args = {
    TORCH_VERSION = "2.13.0+cpu"
    TORCH_INDEX   = "https://download.pytorch.org/whl/cpu"
  }
}
