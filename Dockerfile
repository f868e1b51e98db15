# The scripts of others that the admin pages load, each held against its recorded digest.
FROM node:20-slim AS pages
WORKDIR /pages
COPY dashboards/admin/package.json dashboards/admin/package-lock.json dashboards/admin/vendor.json \
    dashboards/admin/copy-assets.mjs ./
RUN npm ci --no-audit --no-fund && npm run build

# The gateway with its engine and the built-in model, on a CPU. For a GPU start from a CUDA image and
# leave torch to pip's default build.
FROM python:3.11-slim

# The C kernels are compiled at first use, for the CPU that they will run on.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home tiergate

WORKDIR /opt/tiergate
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY engine engine
COPY gateway gateway
COPY tenants tenants
COPY migrations migrations
COPY dashboards dashboards
COPY --from=pages /pages/static/vendor dashboards/admin/static/vendor
RUN pip install --no-cache-dir -c constraints.txt '.[engine,oidc]'

USER tiergate
ENV TIERGATE_HOST=0.0.0.0 \
    TIERGATE_DATA_DIR=/home/tiergate/data
VOLUME /home/tiergate/data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz')"]
CMD ["tiergate", "serve"]
