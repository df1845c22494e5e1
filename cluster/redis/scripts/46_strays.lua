-- Sessions that the store has at a member, and that member has not: the end of their connections was lost. They are
-- freed as those of a dead member are. args: node, inc, grace ms, margin of sent seqs, 1 if a reconnect does not cancel a
-- will without delay, then sid, token ... (one that has another token meanwhile stays). Returns how many it freed.
local function disown(keys, args)
  local p, owner, count, now = keys[1], args[1] .. ':' .. args[2], 0, now_ms()
  for i = 6, #args, 2 do
    local sid = args[i]
    local s = redis.call('HMGET', p .. 's:' .. sid, 'owner', 'token')
    if s[1] ~= owner then
      redis.call('SREM', p .. 'own:' .. owner, sid)
    elseif s[2] == args[i + 1] then
      reap_session(p, sid, owner, tonumber(args[3]), tonumber(args[4]), args[5] == '1', now)
      redis.call('SREM', p .. 'own:' .. owner, sid)
      count = count + 1
    end
  end
  return count
end

redis.register_function { function_name = 'rk1_disown', callback = disown, flags = { 'allow-oom' } }
