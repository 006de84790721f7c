# docker build --build-arg VERSION=1.2.3 --build-arg REVISION=$(git rev-parse HEAD) -t timewait_exporter .
# docker run --rm --network=host --read-only --cap-drop=ALL --security-opt=no-new-privileges timewait_exporter
#
# With the units, pods and containers that the sockets are of, their programs and open files; without --pid=host the last two are missing:
# docker run --rm --network=host --pid=host --volume=/sys/fs/cgroup:/host/sys/fs/cgroup:ro --read-only --cap-drop=ALL \
#   --security-opt=no-new-privileges timewait_exporter --path.cgroupfs=/host/sys/fs/cgroup
#
# For other machines too: docker buildx build --platform=linux/amd64,linux/arm64,linux/arm/v7 ...

# Compiles on the builder's own platform for the one asked for.
FROM --platform=$BUILDPLATFORM docker.io/library/golang:1.26.8 AS build
WORKDIR /src

# A layer of their own: modules are fetched again only when these files change.
COPY go.mod go.sum ./
RUN go mod download && go mod verify

COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
ARG REVISION=unknown
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -buildvcs=false -o /timewait_exporter \
    -ldflags "-s -w \
      -X github.com/prometheus/common/version.Version=$VERSION \
      -X github.com/prometheus/common/version.Revision=$REVISION" \
    ./cmd/timewait_exporter

FROM scratch
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="timewait_exporter" \
      org.opencontainers.image.description="Prometheus exporter for TCP connections, TIME_WAIT and ephemeral ports" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /timewait_exporter /timewait_exporter
COPY LICENSE /LICENSE
# nobody, as a number: runAsNonRoot can't check a name.
USER 65534:65534
EXPOSE 10793
ENTRYPOINT ["/timewait_exporter"]
