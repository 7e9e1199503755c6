<?php
// MOA's own callers: PHP with php-redis. Arguments: PORT. Ends with 1 at the first thing that is not as it should be.

function expect(string $what, $expected, $got): void
{
    if ($expected !== $got) {
        fwrite(STDERR, "$what: expected " . var_export($expected, true) . ", got " . var_export($got, true) . "\n");
        exit(1);
    }
    echo "ok $what\n";
}

// json_encode writes "\/service\/demo": escaped slashes, which the agent must read as any parser would.
function envelope(string $method, ...$args): string
{
    return json_encode(['action' => '/service/demo', 'params' => ['m' => $method, 'args' => $args]]);
}

function result(?string $reply)
{
    return json_decode($reply, true)['result'];
}

function connect(int $port): Redis
{
    $redis = new Redis();
    $redis->connect('127.0.0.1', $port, 5.0);
    $redis->setOption(Redis::OPT_READ_TIMEOUT, 10);
    return $redis;
}

function plain(Redis $redis): void
{
    expect('json_encode escapes slashes', true, str_contains(envelope('nop'), '\/service\/demo'));
    expect('get', 'hi/there', result($redis->get(envelope('echo', 'hi/there'))));
    expect('get of an object', ['id' => 7, 'name' => 'u7A'], result($redis->get(envelope('getUser', 7))));
    expect('get of UTF-8', "\u{4e2d}\u{6587} \u{1f600}", result($redis->get(envelope('echo', "\u{4e2d}\u{6587} \u{1f600}"))));
    expect('an error of the service', 502, json_decode($redis->get(envelope('missing')), true)['ec']);
    $unknown = json_encode(['action' => '/service/unknown', 'params' => ['m' => 'echo', 'args' => ['x']]]);
    expect('an error of the mesh', 501, json_decode($redis->get($unknown), true)['ec']);
}

function many(Redis $redis): void
{
    $keys = array_map(fn ($i) => envelope('echo', "key $i"), range(0, 19));
    $texts = array_map(fn ($i) => "key $i", range(0, 19));
    expect('mGet', $texts, array_map('result', $redis->mGet($keys)));

    $pipe = $redis->pipeline();
    foreach ($keys as $key) {
        $pipe->get($key);
    }
    expect('pipeline', $texts, array_map('result', $pipe->exec()));

    $pipe = $redis->multi(Redis::PIPELINE);
    $pipe->get($keys[3]);
    $pipe->ping('in between');
    $pipe->get($keys[4]);
    $replies = $pipe->exec();
    expect('multi(PIPELINE)', ['key 3', 'in between', 'key 4'], [result($replies[0]), $replies[1], result($replies[2])]);
}

function at_connect(Redis $redis): void
{
    expect('auth with a password', true, $redis->auth('secret'));
    expect('auth with a user', true, $redis->auth(['user', 'secret']));
    expect('select', true, $redis->select(0));
    expect('ping', true, $redis->ping());
    expect('echo', 'text', $redis->echo('text'));
    expect('client setname', true, $redis->client('setname', 'php-app'));
    expect('client getname', 'php-app', $redis->client('getname'));
    expect('info', true, isset($redis->info()['redis_version']));
}

function unknown_command(Redis $redis): void
{
    expect('set is refused', false, $redis->set('key', 'value'));
    expect('with an error', true, str_starts_with($redis->getLastError(), 'ERR'));
    expect('and the connection serves on', 'still', result($redis->get(envelope('echo', 'still'))));
}

function read_timeout(int $port): void
{
    $redis = connect($port);
    $redis->setOption(Redis::OPT_READ_TIMEOUT, 0.2);
    try {
        $redis->get(envelope('slow', 1500));
        expect('read timeout', 'an exception', 'an answer');
    } catch (RedisException $e) {
        expect('read timeout', true, str_contains($e->getMessage(), 'read error'));
    }
    expect('after a read timeout', 'next', result(connect($port)->get(envelope('echo', 'next'))));
}

$port = (int) $argv[1];
$redis = connect($port);
at_connect($redis);
plain($redis);
many($redis);
unknown_command($redis);
read_timeout($port);
$persistent = new Redis();
$persistent->pconnect('127.0.0.1', $port, 5.0, 'pool');
plain($persistent);
