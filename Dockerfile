# The image for jobs/k8s or any other Ray cluster. There are two builds, because only a GPU node needs CUDA and torch's GPU
# build:
#
#   docker build -t REPLACE/corpus-embed:0.1.0 .
#   docker build -t REPLACE/corpus-embed:0.1.0-gpu --build-arg BASE=rayproject/ray:2.60.0-py311-gpu --build-arg TORCH_INDEX= .
#
# Both have the versions of constraints.txt, which are part of the fingerprint. Ray's images run as user `ray` (1000:100).
# Models and jobs are not in the image: a model is an object-store prefix or a Hub id, and a job is a file that is mounted.
ARG BASE=rayproject/ray:2.60.0-py311
ARG KUBECTL=registry.k8s.io/kubectl:v1.34.1

FROM ${KUBECTL} AS kubectl

FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY --from=kubectl /bin/kubectl /usr/local/bin/kubectl
WORKDIR /home/ray/corpus-embed
COPY --chown=1000:100 pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY --chown=1000:100 pipeline ./pipeline
USER 1000:100
RUN pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} ".[html]" \
    && corpus-embed --help > /dev/null
ENV PYTHONUNBUFFERED=1
# no ENTRYPOINT, because KubeRay and `ray start` bring their own commands
CMD ["corpus-embed", "--help"]
