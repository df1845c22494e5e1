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

-- Deletes a session but for its will; returns how many filters it had.
local function wipe(p, sid, birth, now)
  local filters = redis.call('HKEYS', p .. 'sub:' .. sid)
  mark_routes(p, sid, birth, filters, now + LEASE_MS)
  redis.call('UNLINK', p .. 's:' .. sid, p .. 'sub:' .. sid, p .. 'q:' .. sid, p .. 'rel:' .. sid, p .. 'in:' .. sid)
  redis.call('ZREM', p .. 't', 'e' .. sid)
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

-- The counters with the highest seq sent raised by `margin`, and to at least `floor`.
local function sent_more(counters, margin, floor)
  local birth, last, count, bytes, releasing, sent = struct.unpack(COUNTERS, counters)
  return struct.pack(COUNTERS, birth, last, count, bytes, releasing, math.max(math.min(last, sent + margin), floor))
end

-- args: sid, client id, token, node, inc, clean start, expiry s, will record or '', will delay s, margin of sent seqs.
-- Returns {1 if fenced, present, birth, last seq, lowest queued seq, sent, subscriptions, releasing, inbound, ended will or '',
-- ended subscriptions}.
local function attach(keys, args)
  local p, sid, owner = keys[1], args[1], args[4] .. ':' .. args[5]
  if is_fenced(p, args[4], args[5]) then
    return { 1 }
  end
  local key, will, now = p .. 's:' .. sid, p .. 'will:' .. sid, now_ms()
  local s = redis.call('HMGET', key, 'birth', 'expiry', 'owner', 'c', 'lo')
  local present = s[1] and args[6] == '0' and s[2] ~= '0'
  local ended_will, ended = '', {}
  if s[1] and not present then
    if redis.call('ZSCORE', p .. 't', 'w' .. sid) then
      ended_will = redis.call('HGET', will, 'm') or ''
    end
    ended = redis.call('HGETALL', p .. 'sub:' .. sid)
    wipe(p, sid, s[1], now)
  end
  if s[3] and s[3] ~= owner then
    redis.call('SREM', p .. 'own:' .. s[3], sid)
  end
  redis.call('ZREM', p .. 't', 'w' .. sid, 'e' .. sid)
  redis.call('UNLINK', will)
  if args[8] ~= '' then
    redis.call('HSET', will, 'm', args[8], 'd', args[9])
  end
  redis.call('SADD', p .. 'own:' .. owner, sid)
  if not present then
    local birth = redis.call('HINCRBY', p .. 'fence', 'births', 1)
    redis.call('HSET', key, 'birth', birth, 'token', args[3], 'owner', owner, 'expiry', args[7], 'lo', 1,
      'client', args[2], 'c', struct.pack(COUNTERS, birth, 0, 0, 0, 0, 0))
    return { 0, 0, birth, 0, 1, 0, {}, {}, {}, ended_will, ended }
  end
  local birth, last, count, bytes, releasing, sent = struct.unpack(COUNTERS, s[4])
  local low = lowest(p, sid, tonumber(s[5]), last, count)
  if s[3] then
    -- The last owner did not say how far it came.
    sent = math.min(last, sent + tonumber(args[10]))
  end
  redis.call('HSET', key, 'token', args[3], 'owner', owner, 'expiry', args[7], 'lo', low, 'c',
    struct.pack(COUNTERS, birth, last, count, bytes, releasing, sent))
  return { 0, 1, birth, last, low, sent, redis.call('HGETALL', p .. 'sub:' .. sid),
    redis.call('SMEMBERS', p .. 'rel:' .. sid), redis.call('HGETALL', p .. 'in:' .. sid), '', {} }
end

-- As attach, for a full store: only an existing session may be taken.
local function attach_full(keys, args)
  if redis.call('EXISTS', keys[1] .. 's:' .. args[1]) == 0 then
    return { 2 }
  end
  return attach(keys, args)
end

-- args: sid, token, expiry s, sent seq, 1 to keep the will.
-- Returns {1 if it was the owner, 1 if a will is due at once, number of routes to remove}.
local function detach(keys, args)
  local p, sid, expiry = keys[1], args[1], tonumber(args[3])
  local key, will = p .. 's:' .. sid, p .. 'will:' .. sid
  local s = redis.call('HMGET', key, 'token', 'birth', 'owner', 'c')
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
    return { 1, fired, wipe(p, sid, s[2], now) }
  end
  redis.call('HDEL', key, 'token', 'owner')
  redis.call('HSET', key, 'expiry', expiry, 'c', sent_more(s[4], 0, tonumber(args[4])))
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

-- The routes of these filters are as wanted. args: sid, then filter, birth of the change ...
local function routes_done(keys, args)
  local p, sid = keys[1], args[1]
  local rp, gone = p .. 'rp:' .. sid, {}
  for i = 2, #args, 2 do
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

-- Frees what a dead incarnation owned, at most `limit` sessions. args: node, inc, grace ms, limit, margin of sent seqs.
-- Returns how many it still owns.
local function reap(keys, args)
  local p, grace = keys[1], tonumber(args[3])
  local owner, now = args[1] .. ':' .. args[2], now_ms()
  local own = p .. 'own:' .. owner
  if not is_fenced(p, args[1], args[2]) then
    redis.call('HSET', p .. 'fence', 'f:' .. args[1], args[2])
    redis.call('HDEL', p .. 'fence', 'l:' .. args[1])
  end
  local sids = redis.call('SRANDMEMBER', own, args[4])
  for _, sid in ipairs(sids) do
    local key = p .. 's:' .. sid
    local s = redis.call('HMGET', key, 'owner', 'expiry', 'birth', 'c')
    if s[1] == owner then
      local expiry = tonumber(s[2])
      local delay = redis.call('HGET', p .. 'will:' .. sid, 'd')
      if delay then
        local due = expiry > 0 and math.max(math.min(tonumber(delay), expiry) * 1000, grace) or grace
        redis.call('ZADD', p .. 't', now + due, 'w' .. sid)
      end
      if expiry == 0 then
        wipe(p, sid, s[3], now)
      else
        redis.call('HDEL', key, 'token', 'owner')
        redis.call('HSET', key, 'c', sent_more(s[4], tonumber(args[5]), 0))
        if expiry < NEVER then
          redis.call('ZADD', p .. 't', now + expiry * 1000, 'e' .. sid)
        end
      end
    end
  end
  in_chunks('SREM', own, sids)
  return redis.call('SCARD', own)
end

redis.register_function('rk1_attach', attach)
redis.register_function { function_name = 'rk1_attach_full', callback = attach_full, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_detach', callback = detach, flags = { 'allow-oom' } }
redis.register_function('rk1_subscribe', subscribe)
redis.register_function { function_name = 'rk1_unsubscribe', callback = unsubscribe, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_routes_wanted', callback = routes_wanted, flags = { 'no-writes' } }
redis.register_function { function_name = 'rk1_routes_done', callback = routes_done, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_reap', callback = reap, flags = { 'allow-oom' } }
