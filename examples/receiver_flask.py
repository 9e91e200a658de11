"""The receiver as a Flask application.

    flask --app receiver_flask run --port 9000

in this folder, with TASKD_APP_KEY and TASKD_SECRET_KEY in the environment.
"""

from __future__ import annotations

from flask import Flask, Response, request
from receiver import MAX_BODY, Receiver

receiver = Receiver.from_environment()
app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = MAX_BODY


@app.post("/")
def callback() -> Response:
    """One callback; the body as it came, not as JSON."""
    status, text = receiver.answer(request.headers.items(), request.get_data())
    return Response(text, status, mimetype="text/plain")
