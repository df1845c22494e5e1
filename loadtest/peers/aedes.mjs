// A node of aedes whose state and messages go through Redis: `node aedes.mjs REDIS_PORT`. It listens on a free port of
// 127.0.0.1, which it tells on standard output, and ends with its standard input.
import { createServer } from "node:net";
import { Aedes } from "aedes";
import messages from "mqemitter-redis";
import state from "aedes-persistence-redis";

const redis = { host: "127.0.0.1", port: Number(process.argv[2]) };
const broker = await Aedes.createBroker({ mq: messages(redis), persistence: state(redis) });
const server = createServer({ noDelay: true }, broker.handle);
server.listen({ host: "127.0.0.1", port: 0, backlog: 4096 }, () => console.log(server.address().port));
process.stdin.resume().on("end", () => process.exit(0));
