-- What a dead member leaves behind in a partition; in other places only the fence.

local function reap_session(p, sid, owner, grace, margin, publish, now)
  local key, will = p .. 's:' .. sid, p .. 'will:' .. sid
  local s = redis.call('HMGET', key, 'owner', 'expiry', 'birth', 'c', 'client')
  if s[1] ~= owner then
    return
  end
  local expiry, w = tonumber(s[2]), redis.call('HMGET', will, 'd', 'm')
  if w[1] and publish and (w[1] == '0' or expiry == 0) then
    fire(p, sid, w[2], now + grace)
    redis.call('UNLINK', will)
  elseif w[1] then
    local due = expiry > 0 and math.max(math.min(tonumber(w[1]), expiry) * 1000, grace) or grace
    redis.call('ZADD', p .. 't', now + due, 'w' .. sid)
  end
  if expiry == 0 then
    wipe(p, sid, s[3], now, s[5])
    return
  end
  local birth, last, count, bytes, releasing, sent, known, uv = struct.unpack(COUNTERS, s[4])
  sent = perhaps_sent(p, sid, last, sent, margin)
  redis.call('HDEL', key, 'token', 'owner')
  redis.call('HSET', key, 'c', struct.pack(COUNTERS, birth, last, count, bytes, releasing, sent, known, uv))
  if expiry < NEVER then
    redis.call('ZADD', p .. 't', now + expiry * 1000, 'e' .. sid)
  end
end

-- Fences a dead incarnation and frees what it had: first sessions, then its part of groups, at last its stream.
-- args: node, inc, grace ms, limit (sessions, or entries of one group), margin of sent seqs, 1 if a reconnect does not
-- cancel a will without delay; optional: after how many ms dead nodes are forgotten.
-- Returns how many sessions and groups it still has.
local function reap(keys, args)
  local p, limit = keys[1], tonumber(args[4])
  local owner, now = args[1] .. ':' .. args[2], now_ms()
  local own, ng = p .. 'own:' .. owner, p .. 'ng:' .. owner
  fence(p, args[1], args[2])
  local sids = redis.call('SRANDMEMBER', own, limit)
  for _, sid in ipairs(sids) do
    reap_session(p, sid, owner, tonumber(args[3]), tonumber(args[5]), args[6] == '1', now)
  end
  in_chunks('SREM', own, sids)
  if #sids == 0 then
    local gid, out = redis.call('SRANDMEMBER', ng), {}
    if gid and bury_in_group(p, gid, owner, limit, out) then
      redis.call('SREM', ng, gid)
    end
    send_all(out, p)
  end
  local left = redis.call('SCARD', own) + redis.call('SCARD', ng)
  if left == 0 then
    redis.call('UNLINK', p .. 'n:' .. owner)
    forget_fenced(p, args[7])
  end
  return left
end

redis.register_function { function_name = 'rk1_reap', callback = reap, flags = { 'allow-oom' } }
