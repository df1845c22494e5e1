-- Retained messages (one hash per topic shard) and the route table.

-- args: node, inc, valid_until, number, then topic, record ...
local function retain(keys, args)
  local refused = refusal(keys[1], args)
  if refused then
    return refused
  end
  local fields = {}
  for i = 5, #args do
    fields[i - 4] = args[i]
  end
  in_chunks('HSET', keys[1] .. 'ret', fields)
  return answered(keys[1], args, '')
end

-- args: node, inc, valid_until, number, then topics.
local function unretain(keys, args)
  local refused = refusal(keys[1], args)
  if refused then
    return refused
  end
  local topics = {}
  for i = 5, #args do
    topics[i - 4] = args[i]
  end
  in_chunks('HDEL', keys[1] .. 'ret', topics)
  return answered(keys[1], args, '')
end

-- Removes a retained message that has expired, unless it was replaced. args: topic, its record. Returns 1 if it is gone.
local function expire_retained(keys, args)
  local value = redis.call('HGET', keys[1] .. 'ret', args[1])
  if value and value ~= args[2] then
    return 0
  end
  redis.call('HDEL', keys[1] .. 'ret', args[1])
  return 1
end

-- args: node, inc, valid_until, number, then field, record ... A record has the session's birth in bytes 2 to 9.
local function set_routes(keys, args)
  local p = keys[1]
  local refused = refusal(p, args)
  if refused then
    return refused
  end
  local fields = {}
  for i = 5, #args do
    fields[i - 4] = args[i]
  end
  in_chunks('HSET', p .. 'f', fields)
  return answered(p, args, tostring(redis.call('INCR', p .. 'ver')))
end

-- args: node, inc, valid_until, number, then field, 8 bytes of birth ... A route of a later birth stays.
local function remove_routes(keys, args)
  local p = keys[1]
  local refused = refusal(p, args)
  if refused then
    return refused
  end
  for i = 5, #args, 2 do
    local value = redis.call('HGET', p .. 'f', args[i])
    if value and string.sub(value, 2, 9) <= args[i + 1] then
      redis.call('HDEL', p .. 'f', args[i])
    end
  end
  return answered(p, args, tostring(redis.call('INCR', p .. 'ver')))
end

redis.register_function('rk1_retain', retain)
redis.register_function { function_name = 'rk1_unretain', callback = unretain, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_expire_retained', callback = expire_retained, flags = { 'allow-oom' } }
redis.register_function('rk1_set_routes', set_routes)
redis.register_function { function_name = 'rk1_remove_routes', callback = remove_routes, flags = { 'allow-oom' } }
