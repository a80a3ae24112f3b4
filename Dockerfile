# The image of the sidecar: one static binary, the certificates of the public authorities, a data folder. No shell, no
# package manager, nothing to patch but Go itself.

FROM golang:1.26 AS build
WORKDIR /src
# The toolchain is the image's own: a build never fetches another one.
ENV GOTOOLCHAIN=local
# Modules change seldom: a layer of their own keeps rebuilds short.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=dev
# One line on purpose: .ci/binary reads it from here and runs it, so that what is tested is what is shipped. No stamp of the
# repository: it is not in the build context, and both builds shall give the same bytes.
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION}" -o /out/sidecar ./cmd/sidecar
RUN mkdir -p /out/data

FROM scratch
# Buckets and most upstreams are reached over TLS.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/sidecar /sidecar
# State, spool and files. Owned by the user below, so that a fresh volume, which takes over the owner, can be written.
COPY --from=build --chown=65532:65532 /out/data /data
VOLUME ["/data"]
# The default data folder is relative: whatever the arguments, nothing outside of /data is written, and the root of the
# container may be read-only. There is no /tmp here either.
WORKDIR /data
ENV TMPDIR=/data
# Half of the usual heap growth: it costs no speed here and keeps the peak within the memory limits of the manifests.
# GOMEMLIMIT depends on those limits and is set beside them.
ENV GOGC=50
# By number, since only then a cluster can see that it is not root.
USER 65532:65532
# 8000: the FHIR API. 8001: /livez, /readyz, /metrics.
EXPOSE 8000 8001
ENTRYPOINT ["/sidecar"]
CMD ["serve"]
