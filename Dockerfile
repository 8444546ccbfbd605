# One image for worker, beat, flower and every other command; docker-compose.yml says which. The extractor's is the same
# with ibllib: EXTRA=[ibl], CONSTRAINTS=constraints-peer.txt.
FROM python:3.11.14-slim-bookworm AS build
ARG EXTRA=
ARG CONSTRAINTS=constraints.txt
WORKDIR /src
COPY pyproject.toml constraints.txt constraints-peer.txt README.md LICENSE ./
COPY core core
COPY workers workers
COPY scheduler scheduler
RUN pip wheel --no-cache-dir --disable-pip-version-check --constraint "${CONSTRAINTS:-constraints.txt}" \
    --wheel-dir /wheels ".$EXTRA"
RUN python -m venv /opt/training-status \
    && /opt/training-status/bin/pip install --no-cache-dir --disable-pip-version-check --no-index \
        --find-links /wheels "training-status$EXTRA" \
    && /opt/training-status/bin/pip uninstall --quiet --yes pip

FROM python:3.11.14-slim-bookworm
# Whoever runs it, compose's RUN_AS included, can write to the state folder, and to a volume that is made from it.
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin training-status \
    && install --directory --mode 1777 /var/lib/training-status
COPY --from=build /opt/training-status /opt/training-status
# One thread of BLAS a process: a worker has a process for each processor already.
ENV PATH=/opt/training-status/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OPENBLAS_NUM_THREADS=1
USER 10001:10001
WORKDIR /var/lib/training-status
ENTRYPOINT ["training-status"]
CMD ["--help"]
