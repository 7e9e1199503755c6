<?php
// php-redis while its agent goes and comes back, told nothing of it: a connection for each request, as PHP has it. Prints who
// serves, each time that it changes; ends when it was one, another, and the first one again.

$call = json_encode(['action' => '/service/demo', 'params' => ['m' => 'echo', 'args' => ['x']]]);
$calls = $errors = 0;
$seen = [];
while (count($seen) < 3) {
    $calls++;
    try {
        $redis = new Redis();
        $redis->connect('127.0.0.1', 13000, 5.0);
        $redis->setOption(Redis::OPT_READ_TIMEOUT, 10);
        $redis->setOption(Redis::OPT_MAX_RETRIES, 0);
        $answer = json_decode($redis->get($call), true);
        $redis->close();
    } catch (RedisException $error) {
        $errors++;
        continue;
    }
    if ($answer['ec'] !== 0) {
        fwrite(STDERR, 'an answer with an error: ' . json_encode($answer) . "\n");
        exit(1);
    }
    if (end($seen) !== $answer['result']) {
        $seen[] = $answer['result'];
        echo $answer['result'], "\n";
    }
}
echo json_encode(['calls' => $calls, 'errors' => $errors]), "\n";
