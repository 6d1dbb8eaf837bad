# docker build -t flashsale:dev --build-arg GIT_REVISION=$(git rev-parse --short HEAD) .
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
ARG GIT_REVISION=unknown
# The cache mounts keep the registry and every compiled dependency between builds, whatever changed here; what is in them is not part
# of a layer, so the program is copied out in the same step. `locked`: two builds at once must not share a target folder.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    FLASHSALE_GIT_REVISION=$GIT_REVISION cargo build --profile dist --locked && cp target/dist/flashsale /flashsale

# No shell and no package manager: the program, the C library that librdkafka needs, certificates. User 65532.
FROM gcr.io/distroless/cc-debian12:nonroot AS runtime
ARG GIT_REVISION=unknown
LABEL org.opencontainers.image.title="flashsale" \
      org.opencontainers.image.description="Reservations for flash sales: one honest answer each, and never more units promised than exist" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.revision="$GIT_REVISION"
COPY LICENSE-MIT LICENSE-APACHE /licenses/
COPY --from=build /flashsale /flashsale
# The API must be reachable from outside the container. The admin listener stays on loopback until someone gives it an address and a token.
ENV HTTP_ADDR=0.0.0.0:8080
EXPOSE 8080 9090
# No curl inside, so the program asks itself.
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s CMD ["/flashsale", "healthcheck"]
ENTRYPOINT ["/flashsale"]
CMD ["all"]
