// node-redis against an agent. Arguments: PORT. Ends with 1 at the first thing that is not as it should be.
'use strict';

const assert = require('node:assert/strict');
const { createClient } = require('redis');

const envelope = (method, ...args) => JSON.stringify({ action: '/service/demo', params: { m: method, args } });
const result = (reply) => JSON.parse(reply).result;

async function connect(port, options) {
  const client = createClient({ socket: { host: '127.0.0.1', port, reconnectStrategy: false }, ...options });
  client.on('error', (error) => {
    console.error('client error:', error);
    process.exit(1);
  });
  await client.connect();
  return client;
}

async function plain(client) {
  assert.equal(await client.ping(), 'PONG');
  assert.equal(await client.echo('text'), 'text');
  assert.equal(result(await client.get(envelope('echo', 'hi'))), 'hi');
  assert.equal(result(await client.get(envelope('echo', '中文 😀'))), '中文 😀');
  assert.equal(JSON.parse(await client.get(envelope('missing'))).ec, 502);
  assert.match(await client.info(), /redis_version/);
}

async function many(client) {
  const texts = Array.from({ length: 100 }, (_, i) => `key ${i}`);
  const keys = texts.map((text) => envelope('echo', text));
  assert.deepEqual((await client.mGet(keys)).map(result), texts);
  // node-redis pipelines what is asked for in one turn.
  assert.deepEqual((await Promise.all(keys.map((key) => client.get(key)))).map(result), texts);
}

async function errors(client) {
  await assert.rejects(client.set('key', 'value'), /unknown command/i);
  await assert.rejects(client.sendCommand(['NO_SUCH', 'a']), /unknown command/i);
  assert.equal(result(await client.get(envelope('echo', 'still'))), 'still');
}

async function main(port) {
  for (const RESP of [2, 3]) {
    const client = await connect(port, { RESP, name: 'node-app' });
    await plain(client);
    assert.equal(await client.clientGetName(), 'node-app');
    await many(client);
    await errors(client);
    await client.close();
    console.log('ok RESP', RESP);
  }
  const client = await connect(port, { username: 'user', password: 'secret', database: 0 });
  await plain(client);
  await client.close();
  console.log('ok with a password');
}

main(Number(process.argv[2])).catch((error) => {
  console.error(error);
  process.exit(1);
});
