-- Timers: one zset per partition. Items: 'w' + sid will that a reconnect cancels, 'x' + sid + number will that goes out,
-- 'e' + sid session expiry. Sessions whose routes must be brought in line are in a zset of their own.

-- Takes due items; each comes again after the lease unless it is done. args: limit.
-- Returns {item, ...}: {'x', member, record}, {'e', sid, client id, subscriptions, 1 if it has routes}, {'r', sid}.
local function due(keys, args)
  local p, now = keys[1], now_ms()
  local timers, answer = p .. 't', {}
  local members = redis.call('ZRANGEBYSCORE', timers, '-inf', now, 'LIMIT', 0, args[1])
  local function will_of(sid)
    local record = redis.call('HGET', p .. 'will:' .. sid, 'm')
    redis.call('ZREM', timers, 'w' .. sid)
    redis.call('UNLINK', p .. 'will:' .. sid)
    if record then
      answer[#answer + 1] = { 'x', fire(p, sid, record, now + LEASE_MS), record }
    end
  end
  for _, member in ipairs(members) do
    local kind, sid = string.sub(member, 1, 1), string.sub(member, 2, 17)
    if kind == 'w' then
      will_of(sid)
    elseif kind == 'x' then
      redis.call('ZADD', timers, now + LEASE_MS, member)
      local record = redis.call('HGET', p .. 'wx', member)
      if record then
        answer[#answer + 1] = { 'x', member, record }
      else
        redis.call('ZREM', timers, member)
      end
    else
      if redis.call('ZSCORE', timers, 'w' .. sid) then
        -- The will goes out before its session ends.
        will_of(sid)
        redis.call('ZADD', timers, now + 500, member)
      else
        local s = redis.call('HMGET', p .. 's:' .. sid, 'birth', 'client', 'token')
        if s[1] and not s[3] then
          local subscriptions = redis.call('HGETALL', p .. 'sub:' .. sid)
          local routes = wipe(p, sid, s[1], now)
          answer[#answer + 1] = { 'e', sid, s[2], subscriptions, routes > 0 and 1 or 0 }
        else
          redis.call('ZREM', timers, member)
        end
      end
    end
  end
  for _, sid in ipairs(redis.call('ZRANGEBYSCORE', p .. 'tr', '-inf', now, 'LIMIT', 0, args[1])) do
    redis.call('ZADD', p .. 'tr', now + LEASE_MS, sid)
    answer[#answer + 1] = { 'r', sid }
  end
  return answer
end

-- args: 'x' items that were published.
local function done(keys, args)
  redis.call('HDEL', keys[1] .. 'wx', unpack(args))
  return redis.call('ZREM', keys[1] .. 't', unpack(args))
end

redis.register_function { function_name = 'rk1_due', callback = due, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_done', callback = done, flags = { 'allow-oom' } }
