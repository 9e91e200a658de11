"""The snippets of docs/how-to/sign-in-your-language.md, run as they stand there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from taskd.domain import signing

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "sign-in-your-language.md"
SECRET = "0123456789abcdef0123456789abcdef"
APP_KEY = "wWt1aSZj2KXMO7fE"
BODY = '{"name":"帅","content":"{\\"order\\":1001}"}'


def vectors() -> list[tuple[str, str, str, str]]:
    """Timestamps, nonce, payload and signature of each row of the page's table."""
    table = PAGE.read_text().partition("## Vectors")[2]
    return re.findall(
        r"\| `([^`]+)` \| `([\w-]+)` \| `([0-9a-f]{64})` \| `([\w=+/]+)` \|$", table, re.MULTILINE
    )


def snippet(language: str) -> str:
    """The page's code in a language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def run(folder: Path, command: list[str], files: dict[str, str]) -> list[str]:
    """The lines that a program made of these files prints."""
    for name, text in files.items():
        (folder / name).write_text(text)
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here")
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def quoted(arguments: tuple[str, ...]) -> str:
    """Strings as Python, JavaScript, Java and PHP all write them."""
    return ", ".join(json.dumps(argument) for argument in arguments)


def python_lines(folder: Path) -> list[str]:
    calls = [f"print(sign({quoted((SECRET, *vector[:3]))}))" for vector in vectors()]
    calls.append(f"made = headers({quoted((APP_KEY, SECRET))}, {BODY!r}.encode())")
    calls.append('print("\\n".join(f"{name}: {value}" for name, value in made.items()))')
    return run(folder, ["python3", "it.py"], {"it.py": "\n".join([snippet("python"), *calls])})


def node_lines(folder: Path) -> list[str]:
    calls = [f"console.log(sign({quoted((SECRET, *vector[:3]))}))" for vector in vectors()]
    calls.append(f"const made = headers({quoted((APP_KEY, SECRET, BODY))})")
    calls.append("for (const name in made) console.log(`${name}: ${made[name]}`)")
    return run(folder, ["node", "it.mjs"], {"it.mjs": "\n".join([snippet("js"), *calls])})


def php_lines(folder: Path) -> list[str]:
    calls = [f'echo sign({quoted((SECRET, *vector[:3]))}), "\\n";' for vector in vectors()]
    (folder / "body").write_text(BODY)
    calls.append(f"$made = headers({quoted((APP_KEY, SECRET))}, file_get_contents('body'));")
    calls.append('foreach ($made as $name => $value) echo "$name: $value\\n";')
    return run(folder, ["php", "it.php"], {"it.php": "\n".join([snippet("php"), *calls])})


def shell_lines(folder: Path) -> list[str]:
    quote = "'{}'".format
    calls = [f"sign {' '.join(map(quote, (SECRET, *vector[:3])))}; echo" for vector in vectors()]
    calls.append(f"headers {' '.join(map(quote, (APP_KEY, SECRET, BODY)))}")
    return run(folder, ["sh", "-eu", "it.sh"], {"it.sh": "\n".join([snippet("sh"), *calls])})


def java_lines(folder: Path) -> list[str]:
    calls = [
        f"System.out.println(TaskdSigning.sign({quoted((SECRET, *vector[:3]))}));"
        for vector in vectors()
    ]
    (folder / "body").write_text(BODY)
    main = f"""
        final class Main {{
            public static void main(String[] arguments) throws Exception {{
                {" ".join(calls)}
                byte[] body = java.nio.file.Files.readAllBytes(java.nio.file.Path.of("body"));
                TaskdSigning.headers({quoted((APP_KEY, SECRET))}, body)
                    .forEach((name, value) -> System.out.println(name + ": " + value));
            }}
        }}"""
    run(
        folder,
        ["javac", "Main.java", "TaskdSigning.java"],
        {"Main.java": main, "TaskdSigning.java": snippet("java")},
    )
    return run(folder, ["java", "Main"], {})


def go_lines(folder: Path) -> list[str]:
    calls = [f"fmt.Println(Sign({quoted((SECRET, *vector[:3]))}))" for vector in vectors()]
    main = f"""
        package main
        import ("fmt"; "os")
        func main() {{
            {"; ".join(calls)}
            body, err := os.ReadFile("body")
            if err != nil {{ panic(err) }}
            made, err := Headers({quoted((APP_KEY, SECRET))}, body)
            if err != nil {{ panic(err) }}
            for name, value := range made {{ fmt.Println(name + ": " + value) }}
        }}"""
    (folder / "body").write_text(BODY)
    (folder / "signing.go").write_text(snippet("go").replace("package taskd", "package main"))
    return run(folder, ["go", "run", "main.go", "signing.go"], {"main.go": main})


PROGRAMS: dict[str, Callable[[Path], list[str]]] = {
    "Python": python_lines,
    "Node": node_lines,
    "PHP": php_lines,
    "Shell": shell_lines,
}
# Compilers that few have, for one snippet each: tested where they are.
if shutil.which("javac"):
    PROGRAMS["Java"] = java_lines
if shutil.which("go"):
    PROGRAMS["Go"] = go_lines


@pytest.mark.parametrize("language", PROGRAMS)
def test_a_snippet_signs_as_the_vectors_and_the_daemon_do(language: str, tmp_path: Path) -> None:
    lines = PROGRAMS[language](tmp_path)
    signatures, header_lines = lines[: len(vectors())], lines[len(vectors()) :]
    assert signatures == [vector[3] for vector in vectors()]
    made = dict(line.split(": ", 1) for line in header_lines)
    assert set(made) == {"app_key", "timestamps", "nonce", "payload", "signature"}
    assert made["app_key"] == APP_KEY
    assert re.fullmatch("[0-9]{10}", made["timestamps"])
    assert re.fullmatch("(?!cb-)[A-Za-z0-9_-]{16,64}", made["nonce"])
    assert made["payload"] == signing.payload_digest(BODY.encode())
    assert signing.verify(
        SECRET, made["timestamps"], made["nonce"], made["payload"], made["signature"]
    )


def test_the_vectors_of_the_page_are_right() -> None:
    assert len(vectors()) == 4
    for timestamps, nonce, payload, signature in vectors():
        assert signing.sign(SECRET, timestamps, nonce, payload) == signature
    bodies = re.findall(r"(?:body|query) `([^`]+)`", PAGE.read_text().partition("## Vectors")[2])
    digests = [signing.payload_digest(body.encode()) for body in bodies]
    payloads = [vector[2] for vector in vectors()]
    assert digests == [payloads[0], payloads[2], payloads[3]]
    assert signing.payload_digest(b"") == payloads[1]


def test_every_language_of_the_page_is_known_here() -> None:
    headings = re.findall(r"^## (\w+)$", PAGE.read_text().partition("## Vectors")[0], re.MULTILINE)
    assert set(headings) == {"Python", "PHP", "Java", "Node", "Go", "Shell"}
