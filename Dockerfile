# docker build -t persona . && docker run -p 127.0.0.1:7860:7860 -v persona:/data persona
FROM python:3.11-slim
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt && useradd --create-home persona && install -d -o persona /data
COPY . .
USER persona
ENV PERSONA_HOME=/data
VOLUME /data
EXPOSE 7860
CMD ["python", "app.py", "--host", "0.0.0.0"]
