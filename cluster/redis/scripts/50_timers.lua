-- Timers: one zset per partition. Items: 'w' + sid will that a reconnect cancels, 'x' + sid + number will that goes
-- out, 'e' + sid session expiry, 'd' + message id delayed message (its record is in 'dly'). Sessions whose routes must
-- be brought in line are in a zset of their own.

-- Keeps messages to be published later. args: node, inc, valid_until, number, most that a partition keeps, msgpack of a
-- list of {message id, ms from now, record}. Value: for each '1', or '0' if it found no room. One that is there stays as
-- it is. The time counts from here, not by a node's idea of this clock: so nothing comes too early.
local function delay(keys, args)
  local p = keys[1]
  local refused = refusal(p, args)
  if refused then
    return refused
  end
  local items, dly, kept, now = cmsgpack.unpack(args[6]), p .. 'dly', {}, now_ms()
  local room = tonumber(args[5]) - redis.call('HLEN', dly)
  for i, item in ipairs(items) do
    kept[i] = '1'
    if redis.call('HEXISTS', dly, item[1]) == 0 then
      if room > 0 then
        room = room - 1
        redis.call('HSET', dly, item[1], item[3])
        redis.call('ZADD', p .. 't', now + item[2], 'd' .. item[1])
      else
        kept[i] = '0'
      end
    end
  end
  return answered(p, args, table.concat(kept))
end

-- Takes due items; each comes again after the lease unless it is done. args: limit.
-- Returns {item, ...}: {'x', member, record}, {'d', message id, record},
-- {'e', sid, birth, client id, lease end, subscriptions}, {'r', sid}.
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
  local bytes = 0
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
    elseif kind == 'd' then
      local id = string.sub(member, 2)
      local record = redis.call('HGET', p .. 'dly', id)
      if not record then
        redis.call('ZREM', timers, member)
      elseif bytes < PAGE_BYTES then
        redis.call('ZADD', timers, now + LEASE_MS, member)
        answer[#answer + 1] = { 'd', id, record }
        bytes = bytes + #record
      end
    else
      if redis.call('ZSCORE', timers, 'w' .. sid) then
        -- The will goes out before its session ends.
        will_of(sid)
        redis.call('ZADD', timers, now + 500, member)
      else
        local s = redis.call('HMGET', p .. 's:' .. sid, 'birth', 'client', 'token')
        if s[1] and not s[3] then
          redis.call('ZADD', timers, now + LEASE_MS, member)
          answer[#answer + 1] = { 'e', sid, s[1], s[2], now + LEASE_MS, redis.call('HGETALL', p .. 'sub:' .. sid) }
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

-- Ends a session whose expiry was handed out. args: sid, birth, lease end.
-- Returns 1 if it is gone, now or since an earlier call; 0 if it was taken or armed anew meanwhile.
local function expire(keys, args)
  local p, sid = keys[1], args[1]
  local s = redis.call('HMGET', p .. 's:' .. sid, 'birth', 'token', 'client')
  if s[1] ~= args[2] then
    return 1
  end
  local due_at = redis.call('ZSCORE', p .. 't', 'e' .. sid)
  if s[2] or not due_at or tonumber(due_at) ~= tonumber(args[3]) then
    return 0
  end
  wipe(p, sid, s[1], now_ms(), s[3])
  return 1
end

-- Items that were published. args: 'x' items as they came, 'd' .. message id.
local function done(keys, args)
  for _, item in ipairs(args) do
    if string.sub(item, 1, 1) == 'd' then
      redis.call('HDEL', keys[1] .. 'dly', string.sub(item, 2))
    else
      redis.call('HDEL', keys[1] .. 'wx', item)
    end
  end
  return redis.call('ZREM', keys[1] .. 't', unpack(args))
end

redis.register_function('rk1_delay', delay)
redis.register_function { function_name = 'rk1_due', callback = due, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_expire', callback = expire, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_done', callback = done, flags = { 'allow-oom' } }
