// A node program with an http server, timers and a large Map, moved by test_real_programs.
const http = require("http");
const crypto = require("crypto");

const value = (number) => crypto.createHash("sha512").update(String(number)).digest("hex");
const entries = new Map();
for (let number = 0; number < Number(process.argv[3]); number++) entries.set(number, value(number));
let ticks = 0;
setInterval(() => ticks++, 5);

http
  .createServer(async (request, response) => {
    let wrong = 0;
    for (const [number, found] of entries) if (found !== value(number)) wrong++;
    if (request.url === "/add") entries.set(entries.size, value(entries.size));
    // Work for libuv's threads, and for the collector.
    const derived = await new Promise((resolve, reject) =>
      crypto.pbkdf2("secret", "salt", 1000, 32, "sha256", (error, key) => (error ? reject(error) : resolve(key))),
    );
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify({ entries: entries.size, wrong, ticks, derived: derived.toString("hex") }));
  })
  .listen(Number(process.argv[2]), "0.0.0.0");
