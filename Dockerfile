# docker build -t persona . && docker run -p 127.0.0.1:7860:7860 -v persona:/data persona
# with an NVIDIA GPU: docker run --gpus all …
# without one, some gigabytes smaller: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t persona .
FROM python:3.11-slim
ARG TORCH_INDEX=""
WORKDIR /app
COPY requirements.txt .
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir --index-url "$TORCH_INDEX" $(grep ^torch== requirements.txt); fi
RUN pip install --no-cache-dir -r requirements.txt
RUN useradd --create-home persona && install -d -o persona /data
COPY . .
USER persona
ENV PERSONA_HOME=/data
VOLUME /data
EXPOSE 7860
CMD ["python", "app.py", "--host", "0.0.0.0"]
