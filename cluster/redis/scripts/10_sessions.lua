-- Sessions: who owns them, what they subscribed to, and how they end.

-- Hands a will out for publication: it can no longer be cancelled and comes until it is done.
local function fire(p, sid, record, due)
  local member = 'x' .. sid .. redis.call('HINCRBY', p .. 'fence', 'fired', 1)
  redis.call('HSET', p .. 'wx', member, record)
  redis.call('ZADD', p .. 't', due, member)
  return member
end

-- Notes that the routes of these filters must be brought in line with the session.
local function mark_routes(p, sid, birth, filters, due)
  if #filters == 0 then
    return
  end
  local fields = {}
  for i = 1, #filters do
    fields[2 * i - 1] = filters[i]
    fields[2 * i] = birth
  end
  in_chunks('HSET', p .. 'rp:' .. sid, fields)
  redis.call('ZADD', p .. 'tr', due, sid)
end

-- The zset 'ix' has the client ids of the persistent sessions: those with an expiry over 0.

-- Deletes a session but for its will; returns how many filters it had. client: its client id.
local function wipe(p, sid, birth, now, client)
  local filters = redis.call('HKEYS', p .. 'sub:' .. sid)
  mark_routes(p, sid, birth, filters, now + LEASE_MS)
  redis.call('UNLINK', p .. 's:' .. sid, p .. 'sub:' .. sid, p .. 'q:' .. sid, p .. 'rel:' .. sid, p .. 'in:' .. sid)
  redis.call('ZREM', p .. 't', 'e' .. sid)
  redis.call('ZREM', p .. 'ix', client)
  return #filters
end

-- The lowest queued seq, last + 1 if there is none. `hint` is not above it.
local function lowest(p, sid, hint, last, count)
  if count <= 0 then
    return last + 1
  end
  local fields = {}
  for seq = hint, math.min(hint + 99, last) do
    fields[#fields + 1] = seq
  end
  local q = p .. 'q:' .. sid
  if #fields > 0 then
    local values = redis.call('HMGET', q, unpack(fields))
    for i = 1, #fields do
      if values[i] then
        return fields[i]
      end
    end
  end
  local low = last + 1
  for _, field in ipairs(redis.call('HKEYS', q)) do
    local seq = tonumber(field)
    if seq < low then
      low = seq
    end
  end
  return low
end

-- How far an owner may have sent that did not say so: `margin` messages behind `sent`, over any gaps.
local function perhaps_sent(p, sid, last, sent, margin)
  if last - sent <= margin then
    return last
  end
  if last - sent < JUMP then
    return sent + margin
  end
  local seqs = {}
  for _, field in ipairs(redis.call('HKEYS', p .. 'q:' .. sid)) do
    local seq = tonumber(field)
    if seq > sent then
      seqs[#seqs + 1] = seq
    end
  end
  table.sort(seqs)
  return seqs[margin] or last
end

-- Registers the state that the store is in, by the id of its replication history: another one may lack the last
-- writes of the one before. args: replication id. Returns the number of the state: it only grows.
local function generation(keys, args)
  local fence = keys[1] .. 'fence'
  local f = redis.call('HMGET', fence, 'gen', 'replid')
  if f[2] == args[1] then
    return tonumber(f[1])
  end
  redis.call('HSET', fence, 'replid', args[1])
  return redis.call('HINCRBY', fence, 'gen', 1)
end

-- Whether `member` may take a session from its owner without asking: that is dead, or was this node before.
local function may_take(p, owner, node, inc)
  local name, old = string.match(owner, '^(.*):(%d+)$')
  return not name or (name == node and tonumber(old) < tonumber(inc)) or is_fenced(p, name, old)
end

-- The number of a connection: higher than that of any that the client had before, here or elsewhere, also where its
-- session was not kept, and where the store lost its last writes (it is not below its clock).
local function next_epoch(p, now)
  local epoch = math.max(tonumber(redis.call('HGET', p .. 'fence', 'epoch') or 0) + 1, now)
  redis.call('HSET', p .. 'fence', 'epoch', string.format('%.0f', epoch))
  return epoch
end

-- args: sid, client id, token, node, inc, clean start, expiry s, will record or '', will delay s, margin of sent seqs,
-- member that it may be robbed from or '', generation, after how many ms the will goes out of an owner that did not let
-- the session go, if its end makes that due, or '' if it never does; optional: the identity that the session has to be
-- of, and is of from now on, or '' if that does not matter; then, with a clean start, the one whose sessions it may end
-- where nobody is connected with them, or ''.
-- Returns {1} if fenced; {4} if the session is another identity's; {3, owner} if another live member owns the session,
-- and not that one; else {0, present, birth, last seq, lowest queued seq, sent, subscriptions, releasing, inbound,
-- ended will or '', ended subscriptions, number of this connection}.
local function attach(keys, args)
  local p, sid, owner = keys[1], args[1], args[4] .. ':' .. args[5]
  if is_fenced(p, args[4], args[5]) then
    return { 1 }
  end
  local key, will, now = p .. 's:' .. sid, p .. 'will:' .. sid, now_ms()
  local s = redis.call('HMGET', key, 'birth', 'expiry', 'owner', 'c', 'lo', 'identity', 'created')
  local identity = args[14] or ''
  if s[6] and identity ~= '' and s[6] ~= identity then
    local left = not s[3] or may_take(p, s[3], args[4], args[5])
    if s[6] ~= args[15] or args[6] ~= '1' or not left then
      return { 4 }
    end
  end
  if s[3] and s[3] ~= owner and s[3] ~= args[11] and not may_take(p, s[3], args[4], args[5]) then
    return { 3, s[3] }
  end
  local present = s[1] and args[6] == '0' and s[2] ~= '0'
  local ended_will, ended = '', {}
  if s[1] and not present then
    if redis.call('ZSCORE', p .. 't', 'w' .. sid) then
      ended_will = redis.call('HGET', will, 'm') or ''
    end
    ended = redis.call('HGETALL', p .. 'sub:' .. sid)
    wipe(p, sid, s[1], now, args[2])
  end
  if s[3] and s[3] ~= owner then
    redis.call('SREM', p .. 'own:' .. s[3], sid)
    local w = redis.call('HMGET', will, 'm', 'd')
    if w[1] and args[13] ~= '' and (w[2] == '0' or not present) then
      fire(p, sid, w[1], now + tonumber(args[13]))
    end
  end
  redis.call('ZREM', p .. 't', 'w' .. sid, 'e' .. sid)
  redis.call('UNLINK', will)
  if args[8] ~= '' then
    redis.call('HSET', will, 'm', args[8], 'd', args[9])
  end
  redis.call('SADD', p .. 'own:' .. owner, sid)
  if args[7] ~= '0' and not (present and s[7]) then
    -- New, or begun by a node that kept no list.
    redis.call('ZADD', p .. 'ix', 0, args[2])
  elseif args[7] == '0' and present then
    redis.call('ZREM', p .. 'ix', args[2])
  end
  local gen = tonumber(args[12])
  if not present then
    local birth = redis.call('HINCRBY', p .. 'fence', 'births', 1)
    redis.call('HSET', key, 'c', struct.pack(COUNTERS, birth, 0, 0, 0, 0, 0, gen, 0), 'owner', owner, 'birth', birth,
      'token', args[3], 'expiry', args[7], 'lo', 1, 'client', args[2], 'created', string.format('%.0f', now))
    if identity ~= '' then
      redis.call('HSET', key, 'identity', identity)
    end
    return { 0, 0, birth, 0, 1, 0, {}, {}, {}, ended_will, ended, next_epoch(p, now) }
  end
  if identity ~= '' and not s[6] then
    redis.call('HSET', key, 'identity', identity)
  end
  if not s[7] then
    redis.call('HSET', key, 'created', 0)
  end
  local birth, last, count, bytes, releasing, sent, known, uv = struct.unpack(COUNTERS, s[4])
  local low = lowest(p, sid, tonumber(s[5]), last, count)
  local jumps = gen > known
  if s[3] or jumps then
    -- The last owner did not say how far it came, or what it said may be lost.
    sent = perhaps_sent(p, sid, last, sent, tonumber(args[10]))
  end
  if jumps then
    if low > last then
      low = low + JUMP
    end
    last, known, uv = last + JUMP, gen, 0
  end
  redis.call('HSET', key, 'token', args[3], 'owner', owner, 'expiry', args[7], 'lo', low, 'c',
    struct.pack(COUNTERS, birth, last, count, bytes, releasing, sent, known, uv))
  return { 0, 1, birth, last, low, sent, redis.call('HGETALL', p .. 'sub:' .. sid),
    redis.call('SMEMBERS', p .. 'rel:' .. sid), redis.call('HGETALL', p .. 'in:' .. sid), '', {}, next_epoch(p, now) }
end

-- For a full store: only an existing session may be taken; {2} if there is none.
local function attach_full(keys, args)
  if redis.call('EXISTS', keys[1] .. 's:' .. args[1]) == 0 then
    return { 2 }
  end
  return attach(keys, args)
end

-- For nodes that know of no number of the connection.
local function attach_unnumbered(keys, args)
  local answer = attach(keys, args)
  answer[12] = nil
  return answer
end

local function full_unnumbered(keys, args)
  local answer = attach_full(keys, args)
  answer[12] = nil
  return answer
end

-- args: sid, token, expiry s, sent seq, 1 to keep the will.
-- Returns {1 if it was the owner, 1 if a will is due at once, number of routes to remove}.
local function detach(keys, args)
  local p, sid, expiry = keys[1], args[1], tonumber(args[3])
  local key, will = p .. 's:' .. sid, p .. 'will:' .. sid
  local s = redis.call('HMGET', key, 'token', 'birth', 'owner', 'c', 'client', 'expiry')
  if s[1] ~= args[2] then
    return { 0, 0, 0 }
  end
  local now, fired, w = now_ms(), 0, { false }
  redis.call('SREM', p .. 'own:' .. s[3], sid)
  if args[5] == '1' then
    w = redis.call('HMGET', will, 'm', 'd')
  end
  if w[1] and expiry > 0 and w[2] ~= '0' then
    redis.call('ZADD', p .. 't', now + math.min(tonumber(w[2]), expiry) * 1000, 'w' .. sid)
  else
    redis.call('UNLINK', will)
    if w[1] then
      -- Due already: no reconnect can cancel it any more [MQTT-3.1.3-9].
      fire(p, sid, w[1], now)
      fired = 1
    end
  end
  if expiry == 0 then
    return { 1, fired, wipe(p, sid, s[2], now, s[5]) }
  end
  redis.call('HDEL', key, 'token', 'owner')
  if s[6] == '0' then
    redis.call('ZADD', p .. 'ix', 0, s[5])
  end
  local birth, last, count, bytes, releasing, sent, known, uv = struct.unpack(COUNTERS, s[4])
  sent = math.max(sent, tonumber(args[4]))
  redis.call('HSET', key, 'expiry', expiry, 'c',
    struct.pack(COUNTERS, birth, last, count, bytes, releasing, sent, known, uv))
  if expiry < NEVER then
    redis.call('ZADD', p .. 't', now + expiry * 1000, 'e' .. sid)
  end
  return { 1, fired, 0 }
end

-- args: sid, token, then filter, record ... Returns 1, or 0 if another owns the session.
local function subscribe(keys, args)
  local p, sid = keys[1], args[1]
  local s = redis.call('HMGET', p .. 's:' .. sid, 'token', 'birth')
  if s[1] ~= args[2] then
    return 0
  end
  local filters, fields = {}, {}
  for i = 3, #args, 2 do
    filters[#filters + 1] = args[i]
    fields[i - 2], fields[i - 1] = args[i], args[i + 1]
  end
  in_chunks('HSET', p .. 'sub:' .. sid, fields)
  mark_routes(p, sid, s[2], filters, now_ms() + LEASE_MS)
  return 1
end

-- args: sid, token, then filters. Returns 1, or 0 if another owns the session.
local function unsubscribe(keys, args)
  local p, sid = keys[1], args[1]
  local s = redis.call('HMGET', p .. 's:' .. sid, 'token', 'birth')
  if s[1] ~= args[2] then
    return 0
  end
  local filters = {}
  for i = 3, #args do
    filters[i - 2] = args[i]
  end
  in_chunks('HDEL', p .. 'sub:' .. sid, filters)
  mark_routes(p, sid, s[2], filters, now_ms() + LEASE_MS)
  return 1
end

-- What the routes of a session shall be. args: sid.
-- Returns {birth or 0, client id, filter, birth of the change, record or '', ...}.
local function routes_wanted(keys, args)
  local p, sid = keys[1], args[1]
  local s = redis.call('HMGET', p .. 's:' .. sid, 'birth', 'client')
  local answer = { tonumber(s[1] or 0), s[2] or '' }
  local marked = redis.call('HGETALL', p .. 'rp:' .. sid)
  for i = 1, #marked, 2 do
    answer[#answer + 1] = marked[i]
    answer[#answer + 1] = tonumber(marked[i + 1])
    answer[#answer + 1] = redis.call('HGET', p .. 'sub:' .. sid, marked[i]) or ''
  end
  return answer
end

-- The routes of these filters are as wanted. args: sid, route version of an unsubscribe or 0, then filter, birth of the
-- change ... From here on messages that were matched at an older version than that are asked about again (-3).
local function routes_done(keys, args)
  local p, sid, version = keys[1], args[1], tonumber(args[2])
  if version > 0 then
    local counters = redis.call('HGET', p .. 's:' .. sid, 'c')
    if counters then
      local birth, last, count, bytes, releasing, sent, known, uv = struct.unpack(COUNTERS, counters)
      redis.call('HSET', p .. 's:' .. sid, 'c',
        struct.pack(COUNTERS, birth, last, count, bytes, releasing, sent, known, math.max(uv, version)))
    end
  end
  local rp, gone = p .. 'rp:' .. sid, {}
  for i = 3, #args, 2 do
    if redis.call('HGET', rp, args[i]) == args[i + 1] then
      gone[#gone + 1] = args[i]
    end
  end
  in_chunks('HDEL', rp, gone)
  if redis.call('EXISTS', rp) == 0 then
    redis.call('ZREM', p .. 'tr', sid)
  end
  return #gone
end

redis.register_function { function_name = 'rk1_generation', callback = generation, flags = { 'allow-oom' } }
-- Nodes of versions before call the first four; the first two do not tell an identity. The names of the others say that
-- it is looked at, and that the answer has a number: a library that does not know that has not got them.
redis.register_function('rk1_attach', attach_unnumbered)
redis.register_function { function_name = 'rk1_attach_full', callback = full_unnumbered, flags = { 'allow-oom' } }
redis.register_function('rk1_attach_as', attach_unnumbered)
redis.register_function { function_name = 'rk1_attach_as_full', callback = full_unnumbered, flags = { 'allow-oom' } }
redis.register_function('rk1_attach_numbered', attach)
redis.register_function { function_name = 'rk1_attach_numbered_full', callback = attach_full, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_detach', callback = detach, flags = { 'allow-oom' } }
redis.register_function('rk1_subscribe', subscribe)
redis.register_function { function_name = 'rk1_unsubscribe', callback = unsubscribe, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_routes_wanted', callback = routes_wanted, flags = { 'no-writes' } }
redis.register_function { function_name = 'rk1_routes_done', callback = routes_done, flags = { 'allow-oom' } }
