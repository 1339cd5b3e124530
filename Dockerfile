# Ember's image. docs/image.md says what is in it and how large that is; docker-bake.hcl has the variants.
#
#   docker build -t ember .                                                CUDA 12.8: drivers from 2025 on, and newer ones
#   docker build --build-arg MODEL_NAME=Qwen/Qwen3-0.6B -t ember:qwen .    with a model; --secret id=HF_TOKEN for a gated one
#   docker build --build-arg MODEL_NAME=me/mine --build-context model=DIR . with a model from a directory
#
# The base needs Python 3.11 or newer with venv, and apt. CUDA's libraries come with torch, the driver from the host.
ARG BASE_IMAGE=docker.io/library/python:3.12-slim-bookworm

# Takes the place of a named build context: the files of a model, where --build-context model=DIR gives some.
FROM scratch AS model
COPY builder/__init__.py /.none

# ---------------------------------------------------------------- everything that is installed
FROM ${BASE_IMAGE} AS packages
# torch's last version for CUDA 12.8 is 2.11; it runs on drivers for 12.8 and on all later ones.
ARG TORCH_VERSION=2.11.0+cu128
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu128
ARG HATCHLING_VERSION=1.33.0
# For builds behind a mirror; pip reads them.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_CERT
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_COMPILE=1 PIP_ROOT_USER_ACTION=ignore
# pip stays outside of what is shipped.
RUN python3 -m venv /opt/pip && /opt/pip/bin/pip install "hatchling==${HATCHLING_VERSION}" \
 && python3 -m venv --without-pip /opt/ember/venv
COPY requirements.lock /src/
RUN /opt/pip/bin/pip --python /opt/ember/venv/bin/python install "torch==${TORCH_VERSION}" \
        --extra-index-url "${TORCH_INDEX}" --constraint /src/requirements.lock --only-binary=:all: \
 && /opt/pip/bin/pip --python /opt/ember/venv/bin/python install --no-deps --only-binary=:all: \
        --requirement /src/requirements.lock

# ---------------------------------------------------------------- the kernels, compiled for CPUs, and for every GPU without one
FROM packages AS kernels
ARG CAPABILITIES="80 86 89 90 100 120"
# The library for CPUs is C, and some versions of Triton compile C launchers too.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev
COPY kernels /src/kernels
COPY builder/__init__.py builder/precompile.py /src/builder/
WORKDIR /src
RUN PYTHONPATH=/src/kernels:/src \
    /opt/ember/venv/bin/python -m ember_cpu.build \
 && PYTHONPATH=/src/kernels:/src \
    /opt/ember/venv/bin/python -m builder.precompile --cache /opt/ember/kernels \
 && chmod -R a+rwX /opt/ember/kernels

# ---------------------------------------------------------------- Ember itself
FROM packages AS ember
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
COPY --from=kernels /src/kernels /src/kernels
RUN cd /src && /opt/pip/bin/hatchling build -t wheel -d /tmp/dist \
 && /opt/pip/bin/pip --python /opt/ember/venv/bin/python install --no-deps --target /opt/ember/app /tmp/dist/*.whl \
 && sed -i '1s|.*|#!/opt/ember/venv/bin/python|' /opt/ember/app/bin/ember \
 && /opt/ember/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/ember/app
# What the engine does without of this very build of torch. Without the list it imports all of it.
COPY builder/__init__.py builder/lean_torch.py builder/lean_sources.py builder/lean_probe.py /src/builder/
RUN cd /src && PYTHONPATH=/opt/ember/app:/src /opt/ember/venv/bin/python -m builder.lean_torch --own-build \
        --into /opt/ember/app/ember/engine/lean/lists \
 || echo "no list for this torch could be made; a boot imports all of it"

# ---------------------------------------------------------------- a model, where one is named
FROM ember AS baked
ARG MODEL_NAME=""
ARG MODEL_REVISION=""
ARG TOKENIZER_NAME=""
ARG TOKENIZER_REVISION=""
COPY builder/__init__.py builder/bake_model.py /src/builder/
WORKDIR /src
# The token is a file that exists during this step alone.
RUN --mount=type=secret,id=HF_TOKEN --mount=type=bind,from=model,target=/model \
    PYTHONPATH=/opt/ember/app /opt/ember/venv/bin/python -m builder.bake_model --into /opt/ember/models \
        --name "${MODEL_NAME}" --revision "${MODEL_REVISION}" --from /model --token-file /run/secrets/HF_TOKEN \
        --tokenizer "${TOKENIZER_NAME}" --tokenizer-revision "${TOKENIZER_REVISION}"

# ---------------------------------------------------------------- what is shipped of the packages
FROM packages AS shipped
COPY builder/__init__.py builder/slim.py /src/builder/
RUN cd /src && site=$(/opt/ember/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
 && /opt/ember/venv/bin/python -m builder.slim "$site" \
 && { /opt/ember/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash "$site" || true; }

# ---------------------------------------------------------------- the image: no compiler, no pip of its own, no token
FROM ${BASE_IMAGE} AS final
# Images of Python come without bytecode, and a worker that may not write would compile the same files at every start.
RUN python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash -x 'lib2to3|/test/|/tests/|/site-packages/|/idlelib/' \
        "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" || true \
 && groupadd --gid 1000 ember && useradd --uid 1000 --gid ember --create-home ember
COPY --from=shipped /opt/ember/venv /opt/ember/venv
COPY --from=kernels /opt/ember/kernels /opt/ember/kernels
COPY --from=baked /opt/ember/models /opt/ember/models
COPY --from=ember /opt/ember/app /opt/ember/app
COPY builder/entrypoint.sh handler.py LICENSE /opt/ember/
ARG MODEL_NAME=""
ARG MODEL_REVISION=""
ARG TOKENIZER_NAME=""
ARG TOKENIZER_REVISION=""
ENV PATH=/opt/ember/venv/bin:/opt/ember/app/bin:${PATH} \
    PYTHONPATH=/opt/ember/app \
    PYTHONDONTWRITEBYTECODE=1 \
    TRITON_CACHE_DIR=/opt/ember/kernels \
    HF_HUB_DISABLE_TELEMETRY=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    MODEL_NAME=${MODEL_NAME} \
    MODEL_REVISION=${MODEL_REVISION} \
    TOKENIZER_NAME=${TOKENIZER_NAME} \
    TOKENIZER_REVISION=${TOKENIZER_REVISION}
WORKDIR /opt/ember
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=15s --retries=3 \
    CMD ["/opt/ember/venv/bin/python", "-P", "-m", "ember.health"]
ENTRYPOINT ["/opt/ember/entrypoint.sh"]
CMD ["python", "/opt/ember/handler.py"]
