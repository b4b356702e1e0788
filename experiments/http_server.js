// The workload node: an HTTP server that holds entries in memory, each with a version that its content follows from.
//
//     node http_server.js PORT ENTRIES MEASURED
//
// GET /N               the content of an entry
// PUT /N, body V       the entry gets the content of version V
// GET /range/A/B       the contents of the entries A to B - 1, one after the other
// GET /gaps            the waits of the event loop: [[when it ended, how long it was], ...] in milliseconds since 1970
'use strict';
const crypto = require('crypto');
const http = require('http');

const [port, count, measured] = process.argv.slice(2).map(Number);
const LONG_MS = 3, PERIOD_MS = 1;

// As value_of in load_client.py.
function contentOf(number, version) {
  return crypto.createHash('shake128', { outputLength: 512 }).update(`${number}.${version}`).digest('hex');
}

const entries = [];
for (let number = 0; number < count; number++) entries.push(contentOf(number, 0));

const gaps = [];
if (measured) {
  let last = performance.now();
  setInterval(() => {
    const now = performance.now();
    if (now - last > LONG_MS) gaps.push([Date.now(), now - last]);
    last = now;
  }, PERIOD_MS);
}

function answer(request, response, body) {
  const [, first, from, to] = request.url.split('/');
  if (request.method === 'PUT') {
    entries[Number(first)] = contentOf(Number(first), Number(body));
    response.end();
  } else if (first === 'range') {
    response.end(entries.slice(Number(from), Number(to)).join(''));
  } else if (first === 'gaps') {
    response.end(JSON.stringify(gaps));
  } else {
    response.end(entries[Number(first)]);
  }
}

const server = http.createServer((request, response) => {
  let body = '';
  request.on('data', (part) => { body += part; });
  request.on('end', () => answer(request, response, body));
});
server.keepAliveTimeout = 600000;
server.listen(port, '0.0.0.0');
