# Built in one stage, run in another: no compiler, no pip of ours and no cache in the image that runs.
FROM python:3.13.15-slim-trixie AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv /opt/jethook
COPY requirements.lock ./
RUN /opt/jethook/bin/pip install --quiet --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY migrations migrations
# What only builds goes again; the import tells if something that runs went with it.
RUN /opt/jethook/bin/pip install --quiet --no-deps --no-build-isolation . \
    && /opt/jethook/bin/pip uninstall --quiet --yes hatchling packaging pathspec pluggy trove-classifiers pip \
    && /opt/jethook/bin/python -c "import app.demo"

FROM python:3.13.15-slim-trixie
COPY --from=build /opt/jethook /opt/jethook
ENV PATH=/opt/jethook/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    JETHOOK_HOST=0.0.0.0 \
    JETHOOK_DATABASE_URL=sqlite:////data/jethook.db
# By number, so that a platform can see that it is not root. Nothing outside /data is written.
RUN install -d -o 10001 -g 10001 /data
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s CMD ["jethook", "healthcheck"]
ENTRYPOINT ["jethook"]
CMD ["serve"]
