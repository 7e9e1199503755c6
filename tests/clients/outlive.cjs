// node-redis while its agent goes and comes back, told nothing of it: its usual way to connect again, and commands that are not
// sent again. Prints who serves, each time that it changes; ends when it was one, another, and the first one again.
'use strict';

const { createClient } = require('redis');

const CALL = JSON.stringify({ action: '/service/demo', params: { m: 'echo', args: ['x'] } });

const connect = async () => {
  const client = createClient({ socket: { host: '127.0.0.1', port: 13000 } });
  // Without it, an end of the connection would be the end of the process.
  client.on('error', () => {});
  await client.connect();
  return client;
};

async function main() {
  let [client, calls, errors] = [await connect(), 0, 0];
  const seen = [];
  while (seen.length < 3) {
    calls += 1;
    let name;
    try {
      const answer = JSON.parse(await client.get(CALL));
      if (answer.ec !== 0) throw new TypeError(`an answer with an error: ${JSON.stringify(answer)}`);
      name = answer.result;
    } catch (error) {
      if (error instanceof TypeError) throw error;
      errors += 1;
      continue;
    }
    const changes = seen[seen.length - 1] !== name;
    if (changes) {
      seen.push(name);
      console.log(name);
    }
    // It stays where it is until it connects anew.
    if (seen.length === 2) {
      client.destroy();
      client = await connect();
    }
  }
  console.log(JSON.stringify({ calls, errors }));
  client.destroy();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
