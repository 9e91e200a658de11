<?php
// A receiver of taskd's callbacks, for any PHP 8 behind any server. To try it,
// with PHP's own server (port 0 = any free one; it prints its address):
//
//     TASKD_APP_KEY=... TASKD_SECRET_KEY=... php -S 127.0.0.1:9000 examples/receiver.php
//
// PHP keeps nothing between two requests, so nonces and finished tasks are kept
// in the file named by RECEIVER_STATE (in the temporary folder without one). A
// real receiver keeps them in its database, in one transaction with the work.
declare(strict_types=1);

const WINDOW_S = 300;

final class Refused extends Exception {}

// taskd sends app_key as app-key as well, since many servers drop names with underscores.
// $_SERVER has one name for both, HTTP_APP_KEY, under which one may hide the other;
// getallheaders() tells them apart. What comes twice under one name is joined by commas.
function signed_header(string $name): string
{
    $sent = [];
    foreach (getallheaders() as $key => $value) {
        if (str_replace('-', '_', strtolower((string) $key)) === $name) {
            $sent[] = $value;
        }
    }
    $values = array_unique(array_map('trim', explode(',', implode(',', $sent))), SORT_STRING);
    if (count($values) !== 1) {
        throw new Refused("$name comes twice, with different values");
    }
    if ($values[0] === '') {
        throw new Refused("$name is missing");
    }
    return $values[0];
}

function check(string $body, int $now, array &$state): void
{
    $timestamps = signed_header('timestamps');
    $nonce = signed_header('nonce');
    $payload = signed_header('payload');
    if (preg_match('/\A[0-9]{10}\z/', $timestamps) !== 1) {
        throw new Refused('timestamps is no Unix time');
    }
    if (abs($now - (int) $timestamps) > WINDOW_S) {
        throw new Refused('timestamps is outside the window: a late replay, or a wrong clock');
    }
    $expected = base64_encode(
        hash_hmac('sha256', $timestamps . $nonce . $payload, getenv('TASKD_SECRET_KEY'))
    );
    // Both are compared, in constant time, so that the time tells nothing.
    $right_key = hash_equals(getenv('TASKD_APP_KEY'), signed_header('app_key'));
    $right_signature = hash_equals($expected, signed_header('signature'));
    if (!$right_key || !$right_signature) {
        throw new Refused('unknown app_key or bad signature');
    }
    if (!hash_equals(hash('sha256', $body), $payload)) {
        throw new Refused('the body is not the one that was signed');
    }
    $state['nonces'] = array_filter($state['nonces'], fn (int $end): bool => $end > $now);
    // The letter keeps PHP from making an integer key of a nonce of digits.
    if (isset($state['nonces']["n$nonce"])) {
        throw new Refused('the nonce came before: a replay');
    }
    $state['nonces']["n$nonce"] = $now + 2 * WINDOW_S;
}

// taskd delivers at least once: do the work unless an earlier attempt did it.
function work(string $task_id, string $attempt, mixed $data, array &$state): void
{
    if (isset($state['done']["t$task_id"])) {
        error_log("task $task_id attempt $attempt: a repeat, done before");
        return;
    }
    error_log("task $task_id attempt $attempt: " . json_encode($data, JSON_UNESCAPED_SLASHES));
    $state['done']["t$task_id"] = true;
}

function answer(int $status, string $text): void
{
    http_response_code($status);
    header('Content-Type: text/plain; charset=utf-8');
    echo $text;
}

function handle(array &$state): void
{
    if ($_SERVER['REQUEST_METHOD'] !== 'POST') {
        answer(405, 'POST only');
        return;
    }
    $body = file_get_contents('php://input');
    try {
        check($body, time(), $state);
        $callback = json_decode($body, true, 512, JSON_THROW_ON_ERROR);
    } catch (Refused $refusal) {
        error_log('refused: ' . $refusal->getMessage());
        answer(401, $refusal->getMessage());
        return;
    } catch (JsonException) {
        $callback = null;
    }
    if (!is_array($callback) || !array_key_exists('data', $callback)) {
        answer(400, 'the body is no callback');
        return;
    }
    work($_SERVER['HTTP_TASKD_TASK_ID'] ?? '', $_SERVER['HTTP_TASKD_ATTEMPT'] ?? '', $callback['data'], $state);
    answer(200, 'success');
}

if (getenv('TASKD_APP_KEY') === false || getenv('TASKD_SECRET_KEY') === false) {
    error_log('set TASKD_APP_KEY and TASKD_SECRET_KEY in the environment');
    answer(500, 'not configured');
    return;
}
$path = getenv('RECEIVER_STATE') ?: sys_get_temp_dir() . '/taskd-receiver.json';
umask(0077);
$file = fopen($path, 'c+');
flock($file, LOCK_EX);
$state = json_decode(stream_get_contents($file) ?: '', true) ?? ['nonces' => [], 'done' => []];
handle($state);
ftruncate($file, 0);
rewind($file);
fwrite($file, json_encode($state));
fclose($file);
