"""The receiver as a view of Django, and the least of a project around it.

    python3 receiver_django.py runserver --noreload 9000

in this folder, with TASKD_APP_KEY and TASKD_SECRET_KEY in the environment.
"""

from __future__ import annotations

import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from receiver import MAX_BODY, Receiver

receiver = Receiver.from_environment()
settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["127.0.0.1"],
    DATA_UPLOAD_MAX_MEMORY_SIZE=MAX_BODY,
)


@csrf_exempt  # the signature says who it comes from
@require_POST
def callback(request: HttpRequest) -> HttpResponse:
    """One callback; the body as it came, not as JSON."""
    status, text = receiver.answer(request.headers.items(), request.body)
    return HttpResponse(text, status=status, content_type="text/plain")


urlpatterns = [path("", callback)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
